"""Profiling: the stages that measure how important each KV cache is, by estimators and by losses."""
