"""The pictures of a report, by section: training, gradients, activations, attention, machine.

`history` reads the log; `panels` lays pictures out and writes them as SVG or PNG; `lines` and
`heat_maps` draw; `training`, `attention` and `machine` say what of; `sections` is the table.
"""
