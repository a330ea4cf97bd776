"""Qwen3-VL with fewer visual tokens: kept or pooled after the encoder (``reduce``), or of mixed detail inside
it (``encode``); ``ask`` is the whole way from a picture and a question to an answer."""
