"""The process that has a Mooncake store's memory; run with one argument, its setup as JSON."""

from __future__ import annotations

import json
import sys
import time


def main() -> None:
    from mooncake.store import MooncakeDistributedStore

    setup = {name: str(value) for name, value in json.loads(sys.argv[1]).items()}
    setup["master_server_addr"] = setup.pop("mooncake_master_server_addr")
    setup.pop("master_server_address")
    store = MooncakeDistributedStore()
    status = store.setup(setup)
    if status not in (0, None):
        raise SystemExit(f"Mooncake's setup: {status}")
    print("serves", flush=True)
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    main()
