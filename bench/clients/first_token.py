"""Request one token until a request succeeds; print the time on the monotonic clock. first_token.py URL MODEL

Runs in the machine, with the distribution's Python: starting it takes 20 ms.
"""

import http.client
import json
import sys
import time
from urllib.parse import urlsplit

PAUSE_SEC = 0.02
GIVE_UP_SEC = 300


def main(url: str, model: str) -> None:
    where = urlsplit(url)
    body = json.dumps({"model": model, "prompt": "License", "max_tokens": 1})
    end = time.monotonic() + GIVE_UP_SEC
    while time.monotonic() < end:
        try:
            connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=60)
            connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
            if connection.getresponse().status == http.client.OK:
                print(time.monotonic())
                return
        except (OSError, http.client.HTTPException):
            pass
        time.sleep(PAUSE_SEC)
    sys.exit(f"no answer within {GIVE_UP_SEC} s")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
