"""The edges beside the contract, one router a file."""
