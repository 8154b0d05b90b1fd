#!/bin/bash
# A worker that speaks the launcher's contract (environment, control channel, exit codes) and does what FAKE says.
# Words of FAKE: "<deed>" for every rank, or "<deed>@<rank>" for one; the others work until they are told to stop.
# Deeds: absent, finish, code=N, kill, usage, freeze, children, deaf, restart, relapse, fall, vanish, flood, environment, connect,
# cpus; beat works with heartbeats, pace with training steps; survive and blocked work until a peer is lost, and save their state, or never end with
# that; mute=CODE and mute=SIGNAL end before the first word. Besides a deed, "noise" prints many lines
# first.

say() { printf '%s\n' "$1" >&"$FNET_CONTROL"; }

# What a person runs without supervision has no control channel.
if [ -z "$FNET_CONTROL" ]; then
    echo "arguments: $*"
    exit 0
fi

deed=work
for word in $FAKE; do
    case $word in
        noise) noisy=1 ;;
        *@"$RANK") deed=${word%@*} ;;
        *@*) ;;
        *) deed=$word ;;
    esac
done

case $deed in
    mute=[0-9]*) exit "${deed#mute=}" ;;
    mute=*) kill "-${deed#mute=}" $$ ;;
esac
if [ "$deed" = relapse ] && [ "$FNET_RESTART_COUNT" = 1 ]; then
    # Rank 1 is lost again before any rank has begun its work.
    [ "$RANK" != 1 ] || kill -KILL $$
    deed=absent
fi
[ "$deed" != absent ] || exec sleep 1000
say "{\"type\":\"hello\",\"version\":1,\"rank\":$RANK,\"pid\":$$}"
say '{"type":"heartbeat","phase":"backward","epoch":1,"step":7,"idle_seconds":0.0}'
if [ "$RANK" = 0 ] && [ -d work_dirs/cfg ]; then
    : >>work_dirs/cfg/run.log
    say '{"type":"started","log":"work_dirs/cfg/run.log"}'
fi

if [ -n "$noisy" ]; then
    yes 'a line of noise' | head -n "${NOISE:-20000}"
    yes 'a line of noise' | head -n "${NOISE:-20000}" >&2
    touch "noise_$RANK"
fi

work() {
    trap : TERM
    # Without a child, which would be in the group that is paused.
    : >"ready_$RANK"
    while :; do
        # Its time may be over in the middle of a line.
        if read -r -t 0.2 -u "$FNET_CONTROL" part; then message=$begun$part begun=; else begun+=$part message=; fi
        [ "$deed" != saving ] || say '{"type":"heartbeat","phase":"checkpoint","epoch":1,"step":7,"idle_seconds":0.0}'
        [ "$deed" != beat ] || say '{"type":"heartbeat","phase":"backward","epoch":1,"step":7,"idle_seconds":0.0}'
        if [ "$deed" = pace ]; then
            step=$((step + 1))
            say "{\"type\":\"progress\",\"phase\":\"backward\",\"epoch\":1,\"epochs\":3,\"step\":$step,\"total_steps\":90,\"loss\":0.5,\"images_per_second\":8.5,\"memory_bytes\":650000000,\"eta_seconds\":61.0}"
        fi
        case $message in
            *'"interrupted"'*) touch "saved_$RANK"; exit 130 ;;
            *'"terminated"'*) touch "saved_$RANK"; exit 75 ;;
            *'"peer_lost"'*)
                say '{"type":"failed","kind":"peer_lost","message":"connection closed by peer"}'
                case $deed in
                    survive | blocked) say '{"type":"state_ready","step":7}' ;;
                    *) exit 4 ;;
                esac ;;
            *'"emergency_checkpoint"'*)
                if [ "$deed" = survive ]; then
                    say '{"type":"saved","path":"work_dirs/cfg/iter_7.ckpt","step":7}'
                    exit 4
                fi
                deed=saving ;;
        esac
    done
}

# The failing rank waits until the others work.
others() {
    for ((rank = 0; rank < WORLD_SIZE; rank++)); do
        while [ "$rank" != "$RANK" ] && [ ! -e "ready_$rank" ]; do sleep 0.01; done
    done
}

case $deed in
    finish) exit 0 ;;
    code=*) others; echo "last words of rank $RANK" >&2; exit "${deed#code=}" ;;
    kill) others; echo "last words of rank $RANK" >&2; kill -KILL $$ ;;
    usage) others; say '{"type":"failed","kind":"usage","message":"cfg.toml:3: no field named lrr; did you mean lr?"}'; exit 2 ;;
    freeze) kill -STOP $$ ;;
    deaf) trap '' TERM; : >"ready_$RANK"; while :; do sleep 1; done ;;
    children) sleep 1000 & sleep 1000 & [ -z "$QUICK" ] && work; exit 0 ;;
    flood) for ((i = 0; i < 3000; i++)); do echo "rank $RANK line $i of a flood"; done; exit 0 ;;
    cpus)
        awk '/^Cpus_allowed_list/ { print $2 }' /proc/$$/status > "cpus_$RANK"
        ulimit -Sn > "files_$RANK"
        exit 0 ;;
    vanish)
        # The folder of the logs is gone when the job restarts.
        mv work_dirs/cfg/logs work_dirs/cfg/gone
        touch work_dirs/cfg/logs
        kill -KILL $$ ;;
    environment) env > "environment_$RANK"; exit 0 ;;
    connect)
        # The store's port is open before any rank has done anything.
        exec 3<> "/dev/tcp/$MASTER_ADDR/$MASTER_PORT" || exit 6
        [ "$RANK" != 0 ] || [ -S "/dev/fd/$FNET_STORE_FD" ] || exit 6
        [ "$RANK" = 0 ] || [ -z "$FNET_STORE_FD" ] || exit 6
        echo "$MASTER_PORT" > "port_$RANK"
        # The port lives as long as rank 0.
        while [ ! -e port_1 ]; do sleep 0.01; done
        exit 0 ;;
    restart | relapse | fall)
        # Rank 1 is lost, once or in every attempt, after a checkpoint was written.
        echo "$*" >> "arguments_$RANK"
        [ "$deed" = fall ] || [ "$FNET_RESTART_COUNT" = 0 ] || exit 0
        if [ "$RANK" = 1 ]; then
            others
            touch work_dirs/cfg/epoch_1.ckpt
            kill -KILL $$
        fi ;;
esac
work
