i=0
for d in 'RuntimeDirectory=foo/%i' 'StateDirectory=foo/%i' 'EnvironmentFile=-/etc/default/foo-%i' 'Environment=A=%i' 'SyslogIdentifier=%i' 'Type=exec' 'RuntimeDirectory=foo/%I' 'RuntimeDirectory=foo/%j'; do
i=$((i+1))
printf '[Service]\nType=exec\nExecStart=/usr/bin/env sh -c "env | grep DIRECTORY; sleep 9"\n%s\n' "$d" > "/run/systemd/system/t$i@.service"
systemctl daemon-reload
for n in 'x\x20y' 'a:b' 'x\x2dy' ; do
systemctl start "t$i@$n" >/dev/null 2>&1; echo "$? $d $n"; journalctl --sync; journalctl -u "t$i@$n.service" -o cat | grep DIREC
done
done
ls /run/foo /var/lib/foo
mkdir -p /run/systemd/system/'t6@x\x20y.service.d'
printf '[Service]\nRuntimeDirectory=foo/bar\\\\x20y\n' > /run/systemd/system/'t6@x\x20y.service.d/a.conf'; cat  /run/systemd/system/'t6@x\x20y.service.d/a.conf'; systemctl daemon-reload; systemctl stop 't6@x\x20y'; systemctl start 't6@x\x20y'; echo $?; systemctl show -p RuntimeDirectory 't6@x\x20y' 
journalctl -b | grep -i executor
