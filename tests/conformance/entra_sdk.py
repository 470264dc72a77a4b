"""azure-identity 1.27.0 against the emulated token services, and azure-iot-hub 2.7.0 with its tokens against the hub."""

import os
import sys

service, hub, ca, folder = sys.argv[1:5]
os.environ["REQUESTS_CA_BUNDLE"] = ca

from azure.identity import ManagedIdentityCredential
from azure.iot.hub import IoTHubRegistryManager
from azure.iot.hub.models import Twin, TwinProperties
from msal import managed_identity

AGENTS = "/var/opt/azcmagent/tokens"
if folder != AGENTS:
    # Not allowed to write where the agent writes.
    managed_identity._supported_arc_platforms_and_their_prefixes["linux"] = folder


def try_out(name):
    credential = ManagedIdentityCredential()
    token = credential.get_token("https://iothubs.azure.net/.default")
    assert token.token.count(".") == 2, token
    manager = IoTHubRegistryManager.from_token_credential(hub, credential)
    twin = manager.get_twin("edge-1")
    patch = Twin(properties=TwinProperties(desired={"by": name}))
    assert manager.update_twin("edge-1", patch, twin.etag).properties.desired["by"] == name
    try:
        manager.get_device("edge-1")
    except Exception as why:
        assert why.response.status_code == 401, why
        assert "IotHubs/devices/read" in why.response.text, why.response.text
    else:
        raise AssertionError("a twin contributor reads keys")


os.environ["AZURE_POD_IDENTITY_AUTHORITY_HOST"] = service
try_out("imds")
del os.environ["AZURE_POD_IDENTITY_AUTHORITY_HOST"]
os.environ["IDENTITY_ENDPOINT"] = service + "/metadata/identity/oauth2/token"
os.environ["IMDS_ENDPOINT"] = service
try_out("arc")
assert not [name for name in os.listdir(folder) if name.endswith(".key")], "proofs are left behind"
print("both identities are let in")
