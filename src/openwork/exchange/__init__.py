"""Circuits in the files of other programs, one file per format.

    eap_ig             read and written: the JSON of EAP-IG, which is also what the MIB benchmark takes in
    attribution_graph  written: the JSON that public viewers of attribution graphs open

Knows circuits, rankings and text. Does not know models, methods or tasks. Only JSON is read: the pickled and `.pt`
variants of these programs can run code when they are opened, and are refused.
"""

from __future__ import annotations

from openwork.exchange.attribution_graph import attribution_graph
from openwork.exchange.eap_ig import read_eap_ig, to_eap_ig

__all__ = ["attribution_graph", "read_eap_ig", "to_eap_ig"]
