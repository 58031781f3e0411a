#!/bin/sh
# A command line of rllib_hypermarl, or one of the programs that clusters start a node with (`ray up` starts a bash).
case "${1-}" in
    ray | python | bash | sh) exec "$@" ;;
    *) exec rllib-hypermarl "$@" ;;
esac
