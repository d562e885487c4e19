"""A run's output: its folder, its checkpoints, what it counts and what it tells.

`folder` claims, writes and reads it; `unfinished` reads what there is before its end; `checkpoints`
finds the newest whole one; `facts` counts text, model and versions; `completions` asks the model
for masked words, `attention_maps` where it looks; `tables` puts all that into rows for the
terminal, the report and the card; `progress` is the bar.
"""
