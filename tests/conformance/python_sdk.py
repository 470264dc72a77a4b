"""Microsoft's service SDK for Python (azure-iot-hub 2.7.0) against the emulator. Every line that fails, fails the test."""

import socket
import ssl
import sys

from azure.iot.hub import IoTHubRegistryManager
from azure.iot.hub.models import QuerySpecification, Twin, TwinProperties

owner, service, ca = sys.argv[1:4]


def manager(connection_string):
    made = IoTHubRegistryManager.from_connection_string(connection_string)
    made.protocol.config.connection.verify = ca
    return made


def status_of(act):
    """The HTTP status with which the SDK reports that `act` failed, and the hub's name for it."""
    try:
        act()
    except Exception as why:  # the SDK's own type lives in msrest
        return why.response.status_code, why.response.headers.get("iothub-errorcode")
    raise AssertionError("was not refused")


def same(found, wanted):
    assert found == wanted, f"{found!r} is not {wanted!r}"


hub = manager(service)
registry = manager(owner)

# The registry.
made = registry.create_device_with_sas("py-1", "", "", "enabled", iot_edge=True)
same((made.device_id, made.status, made.capabilities.iot_edge), ("py-1", "enabled", True))
assert made.authentication.symmetric_key.primary_key
same(status_of(lambda: registry.create_device_with_sas("py-1", "", "", "enabled")), (409, "DeviceAlreadyExists"))
registry.create_device_with_sas("py-2", "", "", "enabled")
module = registry.create_module_with_sas("py-1", "ha", "", "", "")
same((module.device_id, module.module_id), ("py-1", "ha"))
same([m.module_id for m in registry.get_modules("py-1")], ["ha"])
same(sorted(d.device_id for d in registry.get_devices()), ["edge-1", "py-1", "py-2"])
same(registry.get_device_registry_statistics().total_device_count, 3)
same(status_of(lambda: hub.get_device("py-1")), (401, "IotHubUnauthorizedAccess"))
same(status_of(lambda: registry.get_device("nobody")), (404, "DeviceNotFound"))

# A device's twin: read, patch, merge.
first = hub.get_twin("edge-1")
same((first.device_id, first.version, first.properties.desired["$version"]), ("edge-1", 2, 1))
flag = {"active": True, "leader": "edge-1", "epoch": 17}
patch = Twin(tags={"site": "plant-7"}, properties=TwinProperties(desired={"quorate": flag}))
second = hub.update_twin("edge-1", patch, first.etag)
same({k: v for k, v in second.properties.desired["quorate"].items()}, flag)
same((second.version, second.properties.desired["$version"]), (3, 2))
same(second.properties.desired["$metadata"]["quorate"]["epoch"]["$lastUpdatedVersion"], 2)
assert second.etag != first.etag

# A stale etag is refused and changes nothing; without one the write goes through, nulls delete.
same(status_of(lambda: hub.update_twin("edge-1", patch, first.etag)), (412, "PreconditionFailed"))
same(hub.get_twin("edge-1").etag, second.etag)
third = hub.update_twin("edge-1", Twin(properties=TwinProperties(desired={"quorate": {"leader": None}})))
same(third.properties.desired["quorate"], {"active": True, "epoch": 17})
same(third.tags, {"site": "plant-7"})

# A twin sent back whole, as scripts do, is accepted; replacing replaces.
hub.update_twin("edge-1", hub.get_twin("edge-1"))
fourth = hub.replace_twin("edge-1", Twin(properties=TwinProperties(desired={"only": 1})))
same({k for k in fourth.properties.desired if not k.startswith("$")}, {"only"})
same(status_of(lambda: hub.update_twin("edge-1", Twin(tags={"a": "x" * 5000}))), (400, "ArgumentInvalid"))
same(status_of(lambda: hub.get_twin("nobody")), (404, "DeviceNotFound"))

# A module's twin.
before = hub.get_module_twin("py-1", "ha")
same((before.device_id, before.module_id), ("py-1", "ha"))
after = hub.update_module_twin("py-1", "ha", Twin(properties=TwinProperties(desired={"x": [1, 2]})), before.etag)
same(after.properties.desired["x"], [1, 2])
stale = Twin(properties=TwinProperties(desired={"x": 0}))
same(status_of(lambda: hub.update_module_twin("py-1", "ha", stale, before.etag)), (412, "PreconditionFailed"))
same(status_of(lambda: hub.get_module_twin("py-1", "none")), (404, "ModuleNotFound"))

# Queries, with pages.
names = []
token = None
pages = 0
while True:
    answer = hub.query_iot_hub(QuerySpecification(query="SELECT * FROM devices"), token, 2)
    names += [twin.device_id for twin in answer.items]
    pages += 1
    token = answer.continuation_token
    if not token:
        break
same((sorted(names), pages), (["edge-1", "py-1", "py-2"], 2))
found = hub.query_iot_hub(QuerySpecification(query="SELECT * FROM devices.modules WHERE moduleId = 'ha'"))
same([(t.device_id, t.module_id) for t in found.items], [("py-1", "ha")])
found = hub.query_iot_hub(QuerySpecification(query="SELECT * FROM devices WHERE tags.site = 'plant-7'"))
same([t.device_id for t in found.items], ["edge-1"])
same(status_of(lambda: hub.query_iot_hub(QuerySpecification(query="SELECT nonsense"))), (400, "ArgumentInvalid"))

# The registry's own etag.
same(status_of(lambda: registry.delete_device("py-2", "AAAAAAAAAAA=")), (412, "PreconditionFailed"))
registry.delete_device("py-2")
registry.delete_module("py-1", "ha")
registry.delete_device("py-1")
same([d.device_id for d in registry.get_devices()], ["edge-1"])

# Nobody comes in with a wrong key.
wrong = service.split("SharedAccessKey=")[0] + "SharedAccessKey=d3Jvbmc="
same(status_of(lambda: manager(wrong).get_twin("edge-1")), (401, "IotHubUnauthorizedAccess"))

# Clients that speak nothing newer than TLS 1.2, and clients that name no host, are served.
old = ssl.create_default_context(cafile=ca)
old.maximum_version = ssl.TLSVersion.TLSv1_2
old.check_hostname = False
port = int(service.split(";")[0].split(":")[1])
with socket.create_connection(("127.0.0.1", port)) as tcp, old.wrap_socket(tcp) as tls:
    same(tls.version(), "TLSv1.2")

print("the SDK is content")
