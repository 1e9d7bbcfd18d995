"""Who is up: needed for choosing a node and for people, never for a plain call to get through."""

from busmicro.registry.base import (
    Change,
    ChangeKind,
    Description,
    EndpointRecord,
    EndpointStats,
    Node,
    NodeStats,
    Registry,
    ServiceRecord,
    ServiceStats,
)
from busmicro.registry.discovery import Discovery
from busmicro.registry.kv import KvRegistry
from busmicro.registry.memory import MemoryRegistry
from busmicro.registry.srv import SrvRegistry

__all__ = [
    "Change",
    "ChangeKind",
    "Description",
    "Discovery",
    "EndpointRecord",
    "EndpointStats",
    "KvRegistry",
    "MemoryRegistry",
    "Node",
    "NodeStats",
    "Registry",
    "ServiceRecord",
    "ServiceStats",
    "SrvRegistry",
]
