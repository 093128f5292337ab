"""int8 that earns its place: samples, quantisers per runtime family, precision search, speed and quality gates."""
