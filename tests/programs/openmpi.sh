# Ranks of a program (how many, and what) under Open MPI, which would take the first free port from 1024 on, as another
# one would do while this one is lost.
port=$((20000 + $$ % 12000))
exec mpirun.openmpi --mca oob_tcp_dynamic_ipv4_ports $port --allow-run-as-root --oversubscribe \
    -n "$@"
