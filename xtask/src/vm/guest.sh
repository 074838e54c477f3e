#!/bin/bash
# What the virtual machine is for: unpacks the input tar on the second disk, runs its `run.sh` when the system is up, and
# leaves what it printed and its exit code as a tar on the third. Prints exactly one verdict line on the console.
set -u
modprobe -a virtio_pci virtio_blk tcp_diag udp_diag inet_diag
for _ in $(seq 100); do [ -b /dev/vda ] && [ -b /dev/vdb ] && break; sleep 0.1; done
mkdir -p /var/lib/writ-vm && cd /var/lib/writ-vm || exit 1
mountpoint -q /sys/fs/bpf || mount -t bpf bpf /sys/fs/bpf
if tar -xf /dev/vda; then
    systemctl is-system-running --wait >system
    bash ./run.sh 2>&1 | tee out >/dev/console
    echo "${PIPESTATUS[0]}" >rc
else
    echo 98 >rc
fi
journalctl --boot --no-pager >journal 2>&1
tar --ignore-failed-read -cf /dev/vdb rc out system journal
echo "writ-vm: verdict $(cat rc)" >/dev/console
sync
systemctl poweroff -ff
