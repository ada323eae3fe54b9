"""Measures downtime, throughput, brownout and scale."""
