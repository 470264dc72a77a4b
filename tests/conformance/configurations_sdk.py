"""azure-iot-hub 2.7.0: deployments by tag, many identities at once, and queries in pages. Every line that fails, fails the test."""

import os
import sys

owner, ca = sys.argv[1:3]
os.environ["REQUESTS_CA_BUNDLE"] = ca

from azure.iot.hub import IoTHubConfigurationManager, IoTHubRegistryManager
from azure.iot.hub.models import (
    Configuration,
    ConfigurationContent,
    ConfigurationMetrics,
    ConfigurationQueriesTestInput,
    DeviceCapabilities,
    ExportImportDevice,
    QuerySpecification,
    Twin,
    TwinProperties,
)

hub = IoTHubRegistryManager.from_connection_string(owner)
configurations = IoTHubConfigurationManager.from_connection_string(owner)


def same(found, wanted):
    assert found == wanted, f"{found!r} is not {wanted!r}"


def refused(act):
    try:
        act()
    except Exception as why:  # the SDK's own type lives in msrest
        return why.response.status_code, why.response.headers.get("iothub-errorcode")
    raise AssertionError("was not refused")


def plain(properties):
    return {key: value for key, value in properties.items() if not key.startswith("$")}


# Many identities at once: six devices of two sites, one of them no edge device.
many = [
    ExportImportDevice(
        id=f"bulk-{n}",
        import_mode="create",
        status="enabled" if n != 6 else "disabled",
        capabilities=DeviceCapabilities(iot_edge=n != 5),
        tags={"site": "a" if n < 4 else "b"},
    )
    for n in range(1, 7)
]
result = hub.bulk_create_or_update_devices(many)
same((result.is_successful, result.errors), (True, []))
result = hub.bulk_create_or_update_devices([many[0], ExportImportDevice(id="bulk-7", import_mode="createOrUpdate")])
same((result.is_successful, [(e.device_id, e.error_code) for e in result.errors]), (False, [("bulk-1", "DeviceAlreadyExists")]))
same((hub.get_device("bulk-6").status, hub.get_twin("bulk-6").status), ("disabled", "disabled"))
same(hub.get_twin("bulk-1").tags, {"site": "a"})
result = hub.bulk_create_or_update_devices([ExportImportDevice(id="bulk-7", import_mode="delete")])
same(result.is_successful, True)

# A deployment by tag, and a layer over it.
base = {
    "$edgeAgent": {"properties.desired": {"schemaVersion": "1.1", "modules": {"work": {"type": "docker"}}}},
    "$edgeHub": {"properties.desired": {"schemaVersion": "1.1", "routes": {}}},
    "work": {"properties.desired": {"rate": 1}},
}
made = configurations.create_configuration(
    Configuration(
        id="base-1",
        schema_version="1.0",
        priority=10,
        target_condition="tags.site='a'",
        labels={"app": "ha"},
        content=ConfigurationContent(modules_content=base),
        metrics=ConfigurationMetrics(queries={"all": "SELECT deviceId FROM devices WHERE tags.site='a'"}),
    )
)
same((made.id, made.priority, made.labels), ("base-1", 10, {"app": "ha"}))
layer = {
    "$edgeAgent": {"properties.desired.modules.ha": {"type": "docker"}},
    "ha": {"properties.desired.site": "a"},
    "work": {"properties.desired.rate": 2},
}
configurations.create_configuration(
    Configuration(
        id="layer-1",
        priority=20,
        target_condition="tags.site='a' AND NOT deviceId='bulk-3'",
        content=ConfigurationContent(modules_content=layer),
    )
)
same(sorted(m.module_id for m in hub.get_modules("bulk-1")), ["$edgeAgent", "$edgeHub", "ha", "work"])
agent = hub.get_module_twin("bulk-1", "$edgeAgent").properties.desired
same(sorted(agent["modules"]), ["ha", "work"])
same(plain(hub.get_module_twin("bulk-1", "work").properties.desired), {"rate": 2})
same(plain(hub.get_module_twin("bulk-3", "work").properties.desired), {"rate": 1})
same(hub.get_modules("bulk-4"), [])
seen = configurations.get_configuration("base-1")
same((seen.system_metrics.results["targetedCount"], seen.system_metrics.results["appliedCount"]), (3, 3))
same(seen.metrics.results, {"all": 3})

# A device comes under it by its tag; what others write in between stays until the set changes again.
hub.update_module_twin("bulk-1", "ha", Twin(properties=TwinProperties(desired={"quorate": {"active": True}})))
hub.update_twin("bulk-4", Twin(tags={"site": "a"}))
same(plain(hub.get_module_twin("bulk-4", "work").properties.desired), {"rate": 2})
same(plain(hub.get_module_twin("bulk-1", "ha").properties.desired), {"site": "a", "quorate": {"active": True}})

# Priority and condition can be changed, content cannot.
seen.priority = 30
same(configurations.update_configuration(seen, '"' + seen.etag + '"').priority, 30)
same(plain(hub.get_module_twin("bulk-1", "work").properties.desired), {"rate": 1})
same(refused(lambda: configurations.update_configuration(seen, '"' + seen.etag + '"')), (412, "PreconditionFailed"))
other = configurations.get_configuration("base-1")
other.content.modules_content["work"] = {}
same(refused(lambda: configurations.update_configuration(other, "*")), (400, "CannotModifyImmutableConfigurationContent"))
same(sorted(c.id for c in configurations.get_configurations(10)), ["base-1", "layer-1"])

# What cannot be.
def create(**given):
    return refused(lambda: configurations.create_configuration(Configuration(**given)))

content = ConfigurationContent(modules_content=base)
same(create(id="base-1", content=content), (409, "ConfigurationAlreadyExists"))
same(create(id="Upper", content=content), (400, "ArgumentInvalid"))
same(create(id="c", content=content, target_condition="deviceId IN ['a']"), (400, "InvalidConfigurationTargetCondition"))
same(create(id="c", content=ConfigurationContent(modules_content={"x": {}})), (400, "InvalidConfigurationContent"))
same(refused(lambda: configurations.get_configuration("none")), (404, "ConfigurationNotFound"))
tested = configurations.test_configuration_queries(
    ConfigurationQueriesTestInput(target_condition="tags.=", custom_metric_queries={"good": "SELECT * FROM devices", "bad": "SELECT"})
)
assert tested.target_condition_error
same(list(tested.custom_metric_query_errors), ["bad"])

# Modules put on one device at once.
configurations.apply_configuration_on_edge_device("bulk-6", ConfigurationContent(modules_content=base))
same(plain(hub.get_module_twin("bulk-6", "work").properties.desired), {"rate": 1})
same(refused(lambda: configurations.apply_configuration_on_edge_device("bulk-5", content)), (400, "ArgumentInvalid"))

# Queries over modules, in pages; a page's token belongs to its query.
query = QuerySpecification(query="SELECT deviceId, moduleId FROM devices.modules WHERE moduleId = 'work'")
rows, token = [], None
while True:
    page = hub.query_iot_hub(query, token, 2)
    rows += [item.device_id for item in page.items]
    token = page.continuation_token
    if not token:
        break
    last = token
same(rows, ["bulk-1", "bulk-2", "bulk-3", "bulk-4", "bulk-6"])
same(refused(lambda: hub.query_iot_hub(QuerySpecification(query="SELECT * FROM devices"), last, 2)), (400, "ArgumentInvalid"))

configurations.delete_configuration("layer-1")
configurations.delete_configuration("base-1")
same(configurations.get_configurations(10), [])
same(plain(hub.get_module_twin("bulk-1", "work").properties.desired), {"rate": 1})
print("deployments are accepted")
