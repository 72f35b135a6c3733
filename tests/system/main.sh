# Runs in the guest as guest.service, from the directory shared with the host; its terminal is the host's.
#
# `job`, written by run.py, sets token, mode, time_limit and the arguments.  The host believes only a
# file `result` with that token: a guest that dies on the way has failed.
set -u
share=/mnt/share
artifacts=$share/artifacts
source_tree=/root/src
. "$share/job"
second_boot=no
if [ -e "$share/again" ]; then # written by a test of the first boot
    second_boot=yes
    artifacts=$artifacts/again
    mkdir "$artifacts"
fi

install_nannyd() {
    [ $second_boot = no ] || return 0
    mkdir -p "$source_tree" && tar -xf "$share/tree.tar" -C "$source_tree" || return
    (cd "$source_tree" && install_on_$suite) > "$artifacts/install.txt" 2>&1 || { cat "$artifacts/install.txt"; return 1; }
}

install_on_trixie() {
    dpkg --install "$share/nannyd.deb"
}

# As README.md says it, word by word, but without network: the packages are there, and pip has its wheels.
install_on_bookworm() {
    PIP_NO_INDEX=1 PIP_FIND_LINKS=/opt/wheels PIP_NO_BUILD_ISOLATION=0 \
        bash -ec "$(sed -n '/^apt install python3-psutil/,/^```/{/^apt/d;/^```/d;p}' README.md)"
}

export_logs() {
    journalctl --sync
    journalctl --no-pager -o short-monotonic > "$artifacts/journal.txt"
    journalctl --no-pager -o json > "$artifacts/journal.json"
    [ ! -e /run/core-dumps ] || cp /run/core-dumps "$artifacts/core-dumps.txt"
}

export NANNYD_TEST_ARTIFACTS=$artifacts # for what a test or a benchmark wants to leave behind
stty -opost rows "$rows" cols "$columns"
if ! install_nannyd; then
    echo "cannot install nannyd in the guest"
    status=125
else
    cd "$source_tree" || exit
    case $mode in
        shell)
            stty opost
            bash -l
            status=$?
            ;;
        run)
            timeout --kill-after=5 "$time_limit" "$@" < /dev/null
            status=$?
            [ "$status" -ne 124 ] || echo "still running after $time_limit s: stopped"
            ;;
    esac
fi
export_logs
echo "$token $status" > "$share/result"
sync
if [ -e "$share/again" ] && [ $second_boot = no ]; then
    # A whole shutdown, unlike what follows when this service ends.
    mkdir -p /run/systemd/system/guest.service.d
    printf '[Unit]\nSuccessAction=none\nFailureAction=none\n' > /run/systemd/system/guest.service.d/reboot.conf
    systemctl daemon-reload
    systemctl --no-block reboot
    sleep 60
fi
