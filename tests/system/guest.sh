#!/bin/bash
# Runs at both boots of the emulated host of test_kernel.py and prints its findings to the serial line, a name and a
# value per line.
say() { printf '\ncitadel %s\n' "$*" >/dev/ttyS0; }

# ask: the number of tokens of a completion. Requests wait while an engine is replaced; while the main process is
# replaced, connections are refused.
ask() {
    curl -s --max-time 600 --retry 60 --retry-delay 2 --retry-connrefused http://127.0.0.1:11499/v1/completions \
        -H 'Content-Type: application/json' \
        -d '{"model": "test", "prompt": "Hello", "max_tokens": 4, "ignore_eos": true}' |
        grep -o '"completion_tokens":[0-9]*'
}

# failures KIND: the monitor's count of failures.
failures() {
    curl -s http://127.0.0.1:9090/metrics |
        sed -n "s/^citadel_llm_service_failures_total{result=\"$1\",service=\"test\"} //p"
}

if [ -e /root/before ]; then
    say run-time "$(stat -c '%U %a' /run/citadel-llm)"
    citadel-llm wait test
    say answer-after-reboot "$(ask)"
    say out-of-memory-after-reboot "$(failures out-of-memory)"
    journalctl -b -o cat -u citadel-llm@test -n 200 >/dev/ttyS0
    systemctl poweroff
    exit
fi
# refused_in GROUP ADDRESS PORT: whether the packet filter of a control group refuses a connection and a datagram.
refused_in() {
    for kind in tcp udp; do
        (
            echo $BASHPID >"$1/cgroup.procs"
            # Without a limit, the kernel would repeat its first packet for minutes.
            timeout 20 bash -c "exec 3<>/dev/$kind/$2/$3 && echo x >&3" 2>/dev/null
        ) && printf '%s ' $kind-sent || printf '%s ' $kind-refused
    done
}

touch /root/before

# A host with a network: vLLM must not use its address, which the packet filter refuses.
ip link add dummy0 type dummy
ip address add 192.0.2.1/24 dev dummy0
ip link set dummy0 up
ip route add default via 192.0.2.254
python3 -c 'import socket, time
kept = [socket.create_server(a) for a in (("127.0.0.53", 53), ("127.0.1.1", 53), ("127.0.0.1", 53), ("192.0.2.1", 53))]
time.sleep(3600)' &

say kernel "$(uname -r)"
say cgroups "$(stat -fc %T /sys/fs/cgroup)"
say monitor "$(systemctl is-active citadel-llm-monitor)"
begin=$SECONDS
systemctl enable --now citadel-llm@test
say start $? after $((SECONDS - begin)) s
say answer "$(ask)"
own=/sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup)
group=/sys/fs/cgroup$(systemctl show --value -p ControlGroup citadel-llm@test)
for address in 127.0.0.1 127.0.0.53 127.0.1.1 192.0.2.1; do
    say "packets-$address" "$(refused_in "$group" $address 53)"
    say "packets-outside-$address" "$(refused_in "$own" $address 53)"
done
say ranks "$(
    echo $BASHPID >"$group/cgroup.procs"
    timeout 300 /opt/citadel/env/bin/python -I /root/ranks.py
)"
say landlock "$(/opt/citadel/env/bin/python -I - <<'END'
import os, tempfile
from pathlib import Path
from hxp_enterprise_llm.system import isolation

own, secret = Path(tempfile.mkdtemp()), Path("/run/credentials/other/key")
for directory in (own / "a", own / "b", secret.parent):
    directory.mkdir(parents=True)
secret.touch()
said = [str(isolation.landlock_version()), str(isolation.confine("/run/credentials", [own]))]
(own / "a/file").touch()
(own / "a/file").rename(own / "b/file")
for path in (secret, own.parent / "new", Path(f"/proc/{os.getppid()}/mem")):
    try:
        path.open("ab" if path.name == "new" else "rb").close()
        said.append("opened")
    except PermissionError:
        said.append("refused")
print(*said)
END
)"
for file in memory.max memory.high memory.swap.max cpu.max pids.max; do say $file "$(cat "$group/$file")"; done
# Longer than the interval of the monitor.
sleep 5
say health "$(curl -s http://127.0.0.1:8000/health/services/test)"
# Less than the instance uses: the kernel has to kill some of its processes, and chooses which, maybe all.
systemctl set-property --runtime citadel-llm@test MemoryHigh=infinity MemoryMax=500M
sleep 5
systemctl set-property --runtime citadel-llm@test MemoryMax=4G
say answer-after-oom "$(ask)"
sleep 5
say out-of-memory "$(failures out-of-memory)"
journalctl -o cat -u citadel-llm@test -n 200 >/dev/ttyS0
systemctl reboot
