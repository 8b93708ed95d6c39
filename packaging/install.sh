#!/bin/sh
# Installs Ondine from this folder, or removes what it has installed.
#
#   ./install.sh [--prefix DIRECTORY] [--uninstall]
#
# DIRECTORY is /usr/local by default. Below it go the program, man pages, completions and the systemd unit;
# settings go to /etc/ondine/ondine.toml, or DIRECTORY/etc/ondine with another prefix than /usr and
# /usr/local. Settings that exist, and the state in /var/lib/ondine, are never touched.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
prefix=/usr/local
action=install
while [ $# -gt 0 ]; do
    case $1 in
    --prefix)
        [ $# -gt 1 ] || { echo "install.sh: --prefix needs a directory" >&2; exit 2; }
        prefix=$2
        shift
        ;;
    --prefix=*) prefix=${1#*=} ;;
    --uninstall) action=uninstall ;;
    -h | --help)
        sed -n '2,8s/^# \{0,1\}//p' "$0"
        exit 0
        ;;
    *)
        echo "install.sh: $1 is no option; --help lists them" >&2
        exit 2
        ;;
    esac
    shift
done
case $prefix in
/*) ;;
*) echo "install.sh: the prefix $prefix must begin with /" >&2; exit 2 ;;
esac
case $prefix in
/usr | /usr/local) etc=/etc/ondine ;;
*) etc=$prefix/etc/ondine ;;
esac
units=$prefix/lib/systemd/system
man=$prefix/share/man/man1

# Each installed file, relative to the prefix, after the one that it comes from.
files() {
    echo ondine bin/ondine
    echo completions/ondine share/bash-completion/completions/ondine
    echo completions/_ondine share/zsh/site-functions/_ondine
    echo completions/ondine.fish share/fish/vendor_completions.d/ondine.fish
    for page in "$here"/man/*.1; do
        echo "man/${page##*/} share/man/man1/${page##*/}"
    done
}

if [ "$action" = uninstall ]; then
    files | while read -r from to; do
        rm -f "$prefix/$to"
    done
    rm -f "$units/ondine.service" "$prefix/lib/sysusers.d/ondine.conf"
    echo "removed from $prefix; settings ($etc) and state (/var/lib/ondine) are left"
    exit 0
fi

(cd "$here" && sha256sum --check --quiet SHA256SUMS) || {
    echo "install.sh: the files differ from SHA256SUMS: download them again" >&2
    exit 1
}
files | while read -r from to; do
    mode=0644
    [ "$to" != bin/ondine ] || mode=0755
    mkdir -p "$prefix/${to%/*}"
    # Not written over: a running program would stop that.
    rm -f "$prefix/$to"
    cp "$here/$from" "$prefix/$to"
    chmod "$mode" "$prefix/$to"
done
mkdir -p "$units" "$prefix/lib/sysusers.d" "$etc"
sed -e "s|/usr/bin/ondine|$prefix/bin/ondine|" -e "s|/etc/ondine/|$etc/|" \
    "$here/systemd/ondine.service" >"$units/ondine.service"
cp "$here/systemd/ondine.sysusers" "$prefix/lib/sysusers.d/ondine.conf"
if ! [ -e "$etc/ondine.toml" ]; then
    cp "$here/ondine.toml" "$etc/ondine.toml"
fi
echo "installed $("$prefix/bin/ondine" --version) in $prefix, settings in $etc/ondine.toml, man pages in $man"
echo "as a service: systemd-sysusers && systemctl daemon-reload && systemctl enable --now ondine"
