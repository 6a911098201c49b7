"""The ways engines reach the pool, one file per engine surface."""
