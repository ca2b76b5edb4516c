"""SelfDraft: lossless self-speculative decoding, configured, certified and timed."""

__version__ = "0.1.0"
