"""The bus: tool events in, and what replicas tell each other, over an MQTT 5 broker.

No broker is needed for one replica. Nothing that a request waits for goes over the bus.
"""
