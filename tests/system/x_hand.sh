uname -a; python3 -V
mkdir -p /etc/nannyd
cat > /etc/nannyd/w.toml <<'E'
[worker]
command = ["/usr/bin/python3", "/root/src/tests/workers/rude.py", "--sigterm-handler", "/var/lib/nannyd/w/sigterm", "--ready-after", "1"]
ready = "notify"
[memory]
limit = "128M"
E
chmod o+rx /root; chmod -R o+rX /root/src
systemctl start nannyd@w; echo "start: $?"
systemctl status nannyd@w --no-pager -l
c=/sys/fs/cgroup$(systemctl show -P ControlGroup nannyd@w)
for d in $c $c/*/; do echo "$d: $(cat $d/cgroup.procs | tr '\n' ' ')"; done
for f in memory.high memory.max memory.swap.max memory.oom.group pids.max; do echo "$f $(cat $c/worker-1/$f)"; done
main=$(systemctl show -P MainPID nannyd@w)
worker=$(head -1 $c/worker-1/cgroup.procs)
cat /proc/$main/oom_score_adj /proc/$worker/oom_score_adj
grep -E 'VmRSS|Rss|ctxt|Threads' /proc/$main/status
tr '\0' '\n' < /proc/$main/environ; echo ---; tr '\0' '\n' < /proc/$worker/environ
ls -l /proc/$worker/fd /proc/$main/fd
ls -la /run/nannyd/w /var/lib/nannyd/w /var/lib/nannyd/w/scratch
systemctl reload nannyd@w; echo "reload: $?"
echo 'limitt=3' >> /etc/nannyd/w.toml
systemctl reload nannyd@w; echo "reload: $?"
sed -i /limitt/d /etc/nannyd/w.toml
kill -9 $worker; sleep 2.5
systemctl status nannyd@w --no-pager -l
nannyd explain w; nannyd plan w; nannyd check w; echo $?
time systemctl stop nannyd@w; echo "stop: $?"
systemctl status nannyd@w --no-pager -l
journalctl -u nannyd@w --no-pager
echo; journalctl -u nannyd@w -o verbose --no-pager
