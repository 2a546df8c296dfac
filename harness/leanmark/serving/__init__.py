"""A model as a service: requests come in over a socket, are answered by programs behind caches and a batcher."""
