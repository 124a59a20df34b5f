"""The network: vocabulary, checkpoint, tokens, attention, encoder, and the `Embedder` an actor holds."""
