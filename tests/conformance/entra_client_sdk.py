"""azure-identity 1.27.0's ClientSecretCredential against the emulated directory, and azure-iot-hub 2.7.0 with its tokens."""

import os
import sys

authority, tenant, client_id, file, hub, ca = sys.argv[1:7]
os.environ["REQUESTS_CA_BUNDLE"] = ca

from azure.core.exceptions import ClientAuthenticationError
from azure.identity import ClientSecretCredential
from azure.iot.hub import IoTHubRegistryManager
from azure.iot.hub.models import Twin, TwinProperties

SCOPE = "https://iothubs.azure.net/.default"
secret = open(file).read()


def credential(secret, tenant=tenant, client_id=client_id):
    # Another authority than Microsoft's is not looked up there.
    return ClientSecretCredential(
        tenant, client_id, secret, authority="https://" + authority, disable_instance_discovery=True, connection_verify=ca
    )


good = credential(secret)
assert good.get_token(SCOPE).token.count(".") == 2
manager = IoTHubRegistryManager.from_token_credential(hub, good)
twin = manager.get_twin("edge-1")
patch = Twin(properties=TwinProperties(desired={"by": "client"}))
assert manager.update_twin("edge-1", patch, twin.etag).properties.desired["by"] == "client"

other = "72f988bf-86f1-41af-91ab-2d7cd011db47"
for wrong, number in [
    (credential("wrong"), "AADSTS7000215"),
    (credential(secret, client_id=other), "AADSTS700016"),
    (credential(secret, tenant=other), "AADSTS90002"),
]:
    try:
        wrong.get_token(SCOPE)
    except ClientAuthenticationError as why:
        assert number in str(why), why
    else:
        raise AssertionError("a wrong one is let in")
print("the application is let in")
