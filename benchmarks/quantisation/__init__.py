"""The benchmark of quantisers: photographs, models, contenders, figures. ``run.py`` is its command."""
