"""Many compressed caches over one prefill: decoding, and losses of known continuations."""
