"""OKX's protocol and nothing else: requests, messages, errors, limits, the exchange's clock."""
