"""What shows ARR-COC: accuracy against tokens and latency, the scorers' own cost, a gallery."""
