"""Reference networks as torch modules, one file a family; imports torch, so never at start-up."""
