"""Microsoft's device SDK for Python (azure-iot-device 2.14.0) as a module, told what to do line by line.

Started with nothing it is a module of IoT Edge (IOTEDGE_*); with a connection string and an authority's file it connects to
the hub itself. It prints one line of JSON for everything that happens, and does what it reads: {"do": "twin"},
{"do": "report", "patch": {}}, {"do": "send", "body": "", "output": null, "properties": {}}.
"""

import json
import sys

from azure.iot.device import IoTHubModuleClient, Message, MethodResponse


def tell(**event):
    print(json.dumps(event), flush=True)


if len(sys.argv) > 2:
    with open(sys.argv[2], encoding="utf-8") as ca:
        client = IoTHubModuleClient.create_from_connection_string(sys.argv[1], server_verification_cert=ca.read())
else:
    client = IoTHubModuleClient.create_from_edge_environment()


def method(request):
    tell(event="method", name=request.name, payload=request.payload)
    payload = {"heard": request.payload}
    client.send_method_response(MethodResponse.create_from_method_request(request, 207, payload))


def message(received):
    tell(event="input", input=received.input_name, body=received.data.decode(), properties=received.custom_properties)


client.on_method_request_received = method
client.on_twin_desired_properties_patch_received = lambda patch: tell(event="desired", patch=patch)
client.on_message_received = message
client.on_connection_state_change = lambda: tell(event="connection", connected=client.connected)
client.connect()
client.get_twin()
tell(event="ready")

for line in sys.stdin:
    asked = json.loads(line)
    if asked["do"] == "twin":
        tell(event="twin", twin=client.get_twin())
    elif asked["do"] == "report":
        client.patch_twin_reported_properties(asked["patch"])
        tell(event="reported")
    elif asked["do"] == "send":
        sent = Message(asked["body"], content_encoding="utf-8", content_type="application/json")
        sent.custom_properties.update(asked["properties"])
        if asked["output"]:
            client.send_message_to_output(sent, asked["output"])
        else:
            client.send_message(sent)
        tell(event="sent")

client.shutdown()
tell(event="gone")
