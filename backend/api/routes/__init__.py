"""The routes beside the contract's, one router a file."""
