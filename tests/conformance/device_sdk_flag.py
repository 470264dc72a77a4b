"""A workload module that watches its flag: its own desired property `quorate`, which the site's mirror writes.

It is all that a workload needs to know of quorate: `active` says whether this device's copy is the one that works, `epoch`
grows with every owner. A copy of an older epoch than one it has seen is no news.
"""

import json
import threading

from azure.iot.device import IoTHubModuleClient

client = IoTHubModuleClient.create_from_edge_environment()
lock = threading.Lock()
flag = {}
shown = None


def look():
    global shown
    state = (bool(flag.get("active")), flag.get("epoch", 0))
    if shown is None or (state != shown and state[1] >= shown[1]):
        shown = state
        print(json.dumps({"active": state[0], "epoch": state[1]}), flush=True)


def changed(patch):
    with lock:
        for key, value in (patch.get("quorate") or {}).items():
            flag[key] = value
        look()


client.on_twin_desired_properties_patch_received = changed
client.connect()
with lock:
    flag.update(client.get_twin()["desired"].get("quorate") or {})
    look()
input()
client.shutdown()
