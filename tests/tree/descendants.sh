# Starts descendants of every kind. Each writes its pid into a file, and sleeps.
#
#     sh descendants.sh FILE [all|marked|second|leaf]
#
# `marked` leaves out the one that has no mark. `all` are 7 processes, `marked` 6.
file=$1
kind=$2
start() {
    sh "$0" "$file" "$1"
}
echo $$ >>"$file"
case $kind in
all | marked)
    # Three generations, this one counted.
    start second &
    # A session of its own.
    setsid sh "$0" "$file" leaf &
    # An orphan.
    (start leaf &)
    # An orphan with a session of its own: a double fork.
    (setsid sh "$0" "$file" leaf &)
    if [ "$kind" = all ]; then
        env -i PATH="$PATH" sh "$0" "$file" leaf &
    fi
    ;;
second)
    start leaf &
    ;;
esac
exec sleep 1000
