"""The run folder: configuration, environment, an append-only event log, rounds that appear whole or not at all.

Knows nothing of models. Everything a report shows can be redrawn from what is here. A run that goes on is replayed:
what it records again has to be what is there already.
"""

from steer_heal.ledger.event_log import TIMES
from steer_heal.ledger.files import plain, whole_folder, write_json, write_text, write_whole
from steer_heal.ledger.following import led
from steer_heal.ledger.run_folder import SCHEMA_VERSION, Ledger
from steer_heal.ledger.units import FORGET, Keep, Kind, Units, json_kind

__all__ = [
    "FORGET",
    "SCHEMA_VERSION",
    "TIMES",
    "Keep",
    "Kind",
    "Ledger",
    "Units",
    "json_kind",
    "led",
    "plain",
    "whole_folder",
    "write_json",
    "write_text",
    "write_whole",
]
