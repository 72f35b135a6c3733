# bash completion for nannyctl(1)                          -*- shell-script -*-

_nannyctl_instances() {
    local path name
    for path in /run/nannyd/*/ /var/lib/nannyd/*/ "${XDG_RUNTIME_DIR:-/nonexistent}"/nannyd/*/ \
        /etc/nannyd/*.toml "${XDG_CONFIG_HOME:-$HOME/.config}"/nannyd/*.toml; do
        [[ -e $path ]] || continue
        path=${path%/}
        name=${path##*/}
        name=${name%.toml}
        [[ $name != nannyd ]] && printf '%s\n' "$name"
    done
    # Root sees those of other users.
    ((EUID)) || for path in /run/user/*/nannyd/*/ /tmp/nannyd-*/*/; do
        [[ $path =~ ^(/run/user/[0-9]+/nannyd|/tmp/nannyd-[0-9]+)/[^*] ]] || continue
        [[ $path != "${XDG_RUNTIME_DIR:-/nonexistent}"/* ]] || continue
        path=${path%/}
        name=$(stat --format=%U "${path%/*}") && printf '%s/%s\n' "$name" "${path##*/}"
    done
}

_nannyctl() {
    # As the shell has the words: readline breaks them also at = : and @.
    local line=${COMP_LINE:0:COMP_POINT} current previous='' verb='' word offered=''
    local -a words
    read -ra words <<< "$line"
    [[ $line == *[[:space:]] ]] && words+=('')
    local verbs='list status why metrics start stop restart kill drain reload top logs exec call plugin-add plugin-remove monitor plan explain log-level'
    local levels='emerg alert crit err warning notice info debug'
    local options='--all --json --system --user'
    COMPREPLY=()
    current=${words[-1]#[\"\']}
    previous=${words[-2]}
    if [[ $current == --*=* ]]; then
        previous=${current%%=*}
        current=${current#*=}
    fi
    for word in "${words[@]:1:${#words[@]}-2}"; do
        if [[ -z $verb && " $verbs " == *" $word "* ]]; then
            verb=$word
        elif [[ $verb == exec && $word == -- ]]; then
            # What follows is a command.
            compopt -o default
            [[ $previous == -- ]] && mapfile -t COMPREPLY < <(compgen -c -- "$current" | sort -u)
            return
        fi
    done
    case $previous in
        -p | --priority) offered=$levels ;;
        -w | --directory)
            mapfile -t COMPREPLY < <(compgen -d -- "$current")
            return
            ;;
        -t | --timeout | --reason | -n | --lines | -e | --env | --name | --boot | --since | --until) return ;;
        *)
            if [[ $current == -* ]]; then
                case $verb in
                    '' | list) options+=' --timeout --full --no-legend' ;;
                    status | why) options+=' --timeout --lines --full' ;;
                    metrics | start | reload | call) options+=' --timeout' ;;
                    stop | restart | kill) options+=' --timeout --reason' ;;
                    exec) options+=' --timeout --env --directory --tty --no-tty' ;;
                    plugin-add) options+=' --name' ;;
                    drain) options+=' --reason' ;;
                    top) options+=' --reason' ;;
                    logs) options+=' --follow --lines --boot --since --until --priority' ;;
                esac
                offered="$options --help --version"
            elif [[ -z $verb ]]; then
                offered=$verbs
            else
                offered=$(_nannyctl_instances)
                [[ $verb == log-level && $previous != log-level && $previous != -* ]] && offered=$levels
            fi
            ;;
    esac
    mapfile -t COMPREPLY < <(compgen -W "$offered" -- "$current" | sort -u)
    # Of the current word, readline replaces $2 only.
    COMPREPLY=("${COMPREPLY[@]#"${current%"$2"}"}")
} && complete -F _nannyctl nannyctl
