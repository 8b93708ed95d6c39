set -eu

fail() {
    printf 'ondine: %s\n' "$1" >&2
    exit 1
}

has() {
    command -v "$1" >/dev/null 2>&1
}

# fetch ADDRESS FILE
fetch() {
    if has curl; then
        curl -fsSL --netrc-optional -o "$2" "$1" || fail "cannot fetch $1: $(curl -sSL --netrc-optional --max-time 60 "$1" 2>&1 | head -c 2000 | head -n 20)"
    elif has wget; then
        wget -q -O "$2" "$1" || fail "cannot fetch $1; open it in a browser to see why"
    else
        fail "install curl or wget to fetch packages"
    fi
}

# Fetches the closure, once for all runs.
prepare() {
    [ -d "$root" ] && return
    mkdir -p "$folder"
    new=$(mktemp -d "$folder/new.XXXXXX")
    trap 'rm -rf "$new"' EXIT
    trap 'exit 1' HUP INT TERM
    if has zstd; then
        fetch "$url/closure/$hash.tar.zst" "$new/closure"
        zstd -q -d -c "$new/closure" >"$new/closure.tar"
        rm "$new/closure"
    else
        fetch "$url/closure/$hash.tar" "$new/closure.tar"
    fi
    mkdir "$new/root"
    tar -x -f "$new/closure.tar" -C "$new/root" || fail "cannot unpack the package in $folder"
    # Another run may have been faster.
    mv -T "$new/root" "$root" 2>/dev/null || [ -d "$root" ] || mv "$new/root" "$root"
    rm -rf "$new"
    trap - EXIT HUP INT TERM
}

# The program that is meant: the first of the names that there is, else the only one.
find_program() {
    for name in $(programs); do
        if [ -e "$root$path/bin/$name" ] || [ -h "$root$path/bin/$name" ]; then
            program="$path/bin/$name"
            return
        fi
    done
    count=0
    for file in "$root$path"/bin/*; do
        if [ -e "$file" ] || [ -h "$file" ]; then
            count=$((count + 1))
            program="$path/bin/${file##*/}"
        fi
    done
    [ "$count" -eq 1 ] && return
    [ "$count" -eq 0 ] && fail "$path has no programs"
    fail "$path has several programs: name one with ?program= in the address: $(cd "$root$path/bin" && echo *)"
}

# Runs in a user namespace of its own, whose root has all of this machine and the store.
in_namespace='
    set -eu
    root=$1 top=$2 user=$3 group=$4
    shift 4
    new=$root/.mounted
    mkdir -p "$new"
    mount -t tmpfs tmpfs "$new"
    for entry in /* /.[!.]*; do
        if [ "$entry" = "$top" ]; then continue; fi
        if [ -h "$entry" ]; then
            cp -P "$entry" "$new$entry"
        elif [ -d "$entry" ]; then
            mkdir "$new$entry"
            mount --rbind "$entry" "$new$entry" 2>/dev/null || rmdir "$new$entry"
        fi
    done
    mkdir -p "$new$top"
    mount --rbind "$root$top" "$new$top"
    here=$(pwd)
    run='\''cd "$0" 2>/dev/null || cd /; exec "$@"'\''
    # With the own user again, which only a root that is no chroot allows.
    if unshare --user --map-user="$user" --map-group="$group" true 2>/dev/null; then
        mkdir "$new/.old"
        cd "$new"
        if pivot_root . .old 2>/dev/null; then
            umount -l /.old
            rmdir /.old
            exec unshare --user --map-user="$user" --map-group="$group" sh -c "$run" "$here" "$@"
        fi
    fi
    exec chroot "$new" sh -c "$run" "$here" "$@"
'

main() {
    folder=${ONDINE_RUN_DIR:-${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/ondine-run}
    case $folder in
        /*) ;;
        *) folder=$(pwd)/$folder ;;
    esac
    root=$folder/$hash
    if [ -d "$path" ]; then
        # This machine has the package itself.
        root=
        find_program
        exec "$program" "$@"
    fi
    prepare
    find_program
    top=/$(printf %s "${store#/}" | cut -d / -f 1)
    if has bwrap && bwrap --dev-bind / / true 2>/dev/null; then
        # One folder after the other, since the root itself may not be written to.
        set -- --bind "$root$top" "$top" -- "$program" "$@"
        for entry in /*; do
            if [ "$entry" = "$top" ]; then continue; fi
            if [ -h "$entry" ]; then
                set -- --symlink "$(readlink "$entry")" "$entry" "$@"
            elif [ -d "$entry" ]; then
                set -- --dev-bind "$entry" "$entry" "$@"
            fi
        done
        exec bwrap "$@"
    fi
    if has unshare && unshare --user --map-root-user --mount true 2>/dev/null; then
        exec unshare --user --map-root-user --mount \
            sh -c "$in_namespace" sh "$root" "$top" "$(id -u)" "$(id -g)" "$program" "$@"
    fi
    if has proot; then
        exec proot -b "$root$top:$top" "$program" "$@"
    fi
    fail "cannot show $store to the program: install bubblewrap or proot, or allow user namespaces (util-linux has unshare); as root, unpack $url/closure/$hash.tar.zst at / instead"
}

main "$@"
