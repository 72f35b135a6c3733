# fish completion for nannyctl(1)
function __nannyctl_instances
    set -l config $HOME/.config
    set -q XDG_CONFIG_HOME; and set config $XDG_CONFIG_HOME
    set -l own /nonexistent
    set -q XDG_RUNTIME_DIR; and set own $XDG_RUNTIME_DIR
    for path in /run/nannyd/*/ /var/lib/nannyd/*/ $own/nannyd/*/ /etc/nannyd/*.toml $config/nannyd/*.toml
        string replace -r '^.*/([^/]+?)(\.toml|/)$' '$1' $path | string match -v nannyd
    end
    # Root sees those of other users.
    test (id -u) -eq 0; or return
    for path in /run/user/*/nannyd/*/ /tmp/nannyd-*/*/
        string match -q "$own/*" $path; and continue
        string match -qr '^(/run/user/[0-9]+/nannyd|/tmp/nannyd-[0-9]+)/' $path; or continue
        set -l directory (string trim -r -c / $path)
        echo (stat --format=%U (dirname $directory))/(basename $directory)
    end
end

function __nannyctl_wants_level
    __fish_seen_subcommand_from log-level; and test (count (commandline -opc)) -gt 2
end

# The command that exec is to run.
function __nannyctl_runs
    __fish_seen_subcommand_from exec; and contains -- -- (commandline -opc)
end

function __nannyctl_command
    set -l words (commandline -opc) (commandline -ct)
    set -l end (contains -i -- -- $words)
    complete -C (string join ' ' -- $words[(math $end + 1)..-1])
end

set -l verbs list status why metrics start stop restart kill drain reload top logs exec call plugin-add plugin-remove monitor plan explain log-level
set -l levels 'emerg alert crit err warning notice info debug'
set -l no_verb "not __fish_seen_subcommand_from $verbs"

complete -c nannyctl -f
complete -c nannyctl -n $no_verb -a list -d 'every instance, a line each (the default)'
complete -c nannyctl -n $no_verb -a status -d 'how an instance is, in full'
complete -c nannyctl -n $no_verb -a why -d 'how its last life ended, and why'
complete -c nannyctl -n $no_verb -a metrics -d 'all figures as OpenMetrics text'
complete -c nannyctl -n $no_verb -a start -d 'start it, and wait until its worker is ready'
complete -c nannyctl -n $no_verb -a stop -d 'end the worker and nannyd'
complete -c nannyctl -n $no_verb -a restart -d 'end the worker and start the next'
complete -c nannyctl -n $no_verb -a kill -d 'end the worker; the restart policy decides what follows'
complete -c nannyctl -n $no_verb -a drain -d 'when the worker goes away, do not restart it'
complete -c nannyctl -n $no_verb -a reload -d 'read the configuration again'
complete -c nannyctl -n $no_verb -a top -d 'all instances, live, and keys to restart or kill them'
complete -c nannyctl -n $no_verb -a logs -d 'what nannyd and the worker said'
complete -c nannyctl -n $no_verb -a exec -d 'run a command in its environment, with a terminal if there is one'
complete -c nannyctl -n $no_verb -a call -d 'call a function in its agent'
complete -c nannyctl -n $no_verb -a plugin-add -d 'set a plugin up in its agent, until nannyd ends'
complete -c nannyctl -n $no_verb -a plugin-remove -d 'take a plugin down'
complete -c nannyctl -n $no_verb -a monitor -d 'what happens, as it happens'
complete -c nannyctl -n $no_verb -a plan -d 'the settings in force'
complete -c nannyctl -n $no_verb -a explain -d 'every setting and variable with its origin'
complete -c nannyctl -n $no_verb -a log-level -d 'show or set how much nannyd itself logs'
complete -c nannyctl -n "__fish_seen_subcommand_from $verbs; and not __nannyctl_wants_level; and not __nannyctl_runs" -a '(__nannyctl_instances)'
complete -c nannyctl -n __nannyctl_wants_level -a $levels
complete -c nannyctl -n __nannyctl_runs -a '(__nannyctl_command)'

complete -c nannyctl -s a -l all -d 'every instance'
complete -c nannyctl -l json -d 'JSON instead of text'
complete -c nannyctl -l system -d 'only the instances of the system'
complete -c nannyctl -l user -d 'only your own instances'
complete -c nannyctl -s h -l help -d 'list the verbs'
complete -c nannyctl -l version -d 'print the version'
complete -c nannyctl -n '__fish_seen_subcommand_from list status why metrics start stop restart kill reload exec call' -s t -l timeout -x -d 'how long to wait'
complete -c nannyctl -n '__fish_seen_subcommand_from stop restart kill drain top' -l reason -x -d 'why, for the log'
complete -c nannyctl -n '__fish_seen_subcommand_from status why logs' -s n -l lines -x -d 'how many lines'
complete -c nannyctl -n '__fish_seen_subcommand_from list status why' -s l -l full -d 'do not shorten'
complete -c nannyctl -n '__fish_seen_subcommand_from list' -s q -l no-legend -d 'neither header nor footer'
complete -c nannyctl -n '__fish_seen_subcommand_from logs' -s f -l follow -d 'show what comes later too'
complete -c nannyctl -n '__fish_seen_subcommand_from logs' -s b -l boot -d 'since the machine started'
complete -c nannyctl -n '__fish_seen_subcommand_from logs' -l since -x -d 'from that time'
complete -c nannyctl -n '__fish_seen_subcommand_from logs' -l until -x -d 'until that time'
complete -c nannyctl -n '__fish_seen_subcommand_from logs' -s p -l priority -x -a $levels -d 'only what is as urgent'
complete -c nannyctl -n '__fish_seen_subcommand_from exec' -s e -l env -x -d 'a variable more'
complete -c nannyctl -n '__fish_seen_subcommand_from exec' -s w -l directory -x -a '(__fish_complete_directories)' -d 'where the command runs'
complete -c nannyctl -n '__fish_seen_subcommand_from plugin-add' -l name -x -d 'how the plugin is called'
complete -c nannyctl -n '__fish_seen_subcommand_from exec' -l tty -d 'with a terminal'
complete -c nannyctl -n '__fish_seen_subcommand_from exec' -l no-tty -d 'without a terminal'
