"""Run a generator several times; print the wall-clock time of each run in milliseconds. generator.py PROGRAM TIMES"""

import subprocess
import sys
import time

OUTPUT = "/run/timed"

for _ in range(int(sys.argv[2])):
    subprocess.run(["/bin/rm", "-rf", OUTPUT], check=True)
    begin = time.perf_counter()
    subprocess.run([sys.argv[1], OUTPUT], check=True, stderr=subprocess.DEVNULL)
    print((time.perf_counter() - begin) * 1000)
subprocess.run(["/bin/rm", "-rf", OUTPUT], check=True)
