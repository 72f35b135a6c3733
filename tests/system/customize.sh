#!/bin/sh
# Makes a fresh Debian 13 tree into the machine that the system tests boot.
# mmdebstrap runs this on the host (image.py) with the root of the tree as its argument.
#
# User-mode Linux pays dearly for every fork and exec, so whatever does not serve a test is masked:
# a boot consists of journald, dbus, logind and guest.service, which runs what run.py left in the share.
set -eu
root=$1

in_root() { chroot "$root" "$@"; }

write() { # PATH: from standard input
    mkdir -p "$(dirname "$root$1")"
    cat > "$root$1"
}

echo 0123456789abcdef0123456789abcdef | write /etc/machine-id
echo guest | write /etc/hostname
printf '127.0.0.1 localhost guest\n::1 localhost\n' | write /etc/hosts
echo 'LANG=C.UTF-8' | write /etc/locale.conf
: | write /etc/fstab
echo 'this is the test machine of nannyd' | write /etc/nannyd-guest

in_root passwd --quiet --lock root
chmod 755 "$root/root" # the source tree lies there, and units run programs of it as other users
in_root useradd --create-home --shell /bin/bash alice
in_root useradd --create-home --shell /bin/bash bob

# There is no udev, hence no device unit: nothing may wait for one.
in_root systemctl --quiet mask \
    systemd-udevd.service systemd-udevd-control.socket systemd-udevd-kernel.socket systemd-udev-trigger.service \
    systemd-udev-settle.service systemd-hwdb-update.service \
    getty.target getty@.service serial-getty@.service console-getty.service container-getty@.service \
    systemd-journal-flush.service systemd-journal-catalog-update.service systemd-update-done.service \
    systemd-random-seed.service systemd-machine-id-commit.service systemd-firstboot.service \
    systemd-sysusers.service systemd-remount-fs.service systemd-modules-load.service systemd-binfmt.service \
    systemd-tmpfiles-clean.timer systemd-pcrphase.service systemd-pcrphase-sysinit.service systemd-pstore.service \
    systemd-network-generator.service systemd-battery-check.service systemd-hibernate-clear.service \
    ldconfig.service modprobe@.service kmod-static-nodes.service systemd-tpm2-setup.service \
    systemd-tpm2-setup-early.service systemd-ask-password-console.path systemd-ask-password-wall.path \
    dev-hugepages.mount dev-mqueue.mount sys-kernel-debug.mount sys-kernel-tracing.mount sys-kernel-config.mount \
    sys-fs-fuse-connections.mount proc-sys-fs-binfmt_misc.automount \
    apt-daily.timer apt-daily-upgrade.timer fstrim.timer e2scrub_all.timer e2scrub_reap.service dpkg-db-backup.timer
in_root systemctl --quiet disable redis-server.service

# Generators run at every daemon-reload, and the tests reload often.
mkdir -p "$root/etc/systemd/system-generators" "$root/etc/systemd/user-generators"
for generator in "$root"/usr/lib/systemd/system-generators/* "$root"/usr/lib/systemd/user-generators/*; do
    ln -s /dev/null "$root/etc${generator#"$root/usr/lib"}"
done

write /etc/systemd/journald.conf.d/guest.conf << 'END'
[Journal]
Storage=volatile
RuntimeMaxUse=256M
RateLimitIntervalSec=0
# What the host still sees of a guest that hung or panicked.
ForwardToConsole=yes
TTYPath=/dev/tty0
MaxLevelConsole=warning
END

# Every core dump leaves a line, whatever RLIMIT_CORE says.
write /etc/sysctl.d/90-core.conf << 'END'
kernel.core_pattern=|/usr/local/sbin/note-core %P %u %s %e
END
write /usr/local/sbin/note-core << 'END'
#!/bin/sh
echo "pid=$1 uid=$2 signal=$3 command=$4" >> /run/core-dumps
END
chmod 755 "$root/usr/local/sbin/note-core"

write /etc/systemd/system/mnt-share.mount << 'END'
[Unit]
Description=Directory shared with the host
DefaultDependencies=no
[Mount]
What=none
Where=/mnt/share
Type=hostfs
END
write /etc/systemd/system/guest.service << 'END'
[Unit]
Description=What the host asked for
RequiresMountsFor=/mnt/share
After=dbus.socket
SuccessAction=poweroff-immediate
FailureAction=poweroff-immediate
[Service]
Type=exec
ExecStart=/bin/sh /mnt/share/main.sh
WorkingDirectory=/root
Environment=HOME=/root USER=root LOGNAME=root SHELL=/bin/bash LANG=C.UTF-8
StandardInput=tty
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
IgnoreSIGPIPE=no
TasksMax=infinity
TimeoutStopSec=1
[Install]
WantedBy=multi-user.target
END
in_root systemctl --quiet enable guest.service
in_root systemctl --quiet set-default multi-user.target

rm -rf "$root"/usr/share/doc "$root"/usr/share/man "$root"/usr/share/locale
# Packages that are installed in the guest come whole.
sed -i '/^path-exclude/d' "$root"/etc/dpkg/dpkg.cfg.d/99mmdebstrap
