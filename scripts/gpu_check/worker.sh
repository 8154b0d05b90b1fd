#!/bin/sh
# Starts a worker as if every rank were on a host of its own: NCCL refuses two ranks of one host on the same GPU. It then
# connects them by sockets, so its transports between GPUs are checked only on a machine with two.
# fnet-launch runs this in place of the worker (FNET_WORKER); FNET_CHECK_WORKER is the real one.
export NCCL_HOSTID="fnet-rank-${RANK:-0}"
# The "hosts" share the loopback interface and nothing else.
export NCCL_SOCKET_IFNAME=lo NCCL_IB_DISABLE=1
exec "$FNET_CHECK_WORKER" "$@"
