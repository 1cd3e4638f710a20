# What the steps of action.yml share. Inputs are values of variables here, and never code.
# shellcheck shell=bash
# A step sets BIN, makes the folder "$new", and fills the array "words".

# Appends the option $1 with each line of $2.
add_lines() {
    local line
    while IFS= read -r line; do
        if [[ -n "$line" ]]; then words+=("$1" "$line"); fi
    done <<< "$2"
}

# Appends the words of $1. Quotes work as in a shell; nothing is expanded.
add_args() {
    local word
    "$BIN/python" -c 'import shlex, sys
for word in shlex.split(sys.argv[1]):
    print(word, end="\0")' "$1" > "$new/args"
    while IFS= read -r -d "" word; do words+=("$word"); done < "$new/args"
    rm "$new/args"
}

# Runs precheck: "$code" is its exit code, "$token" a word that nobody can guess. While precheck
# tells what it read from a model or a server, the runner carries out no workflow commands.
run_precheck() {
    token=$("$BIN/python" -c 'import secrets; print(secrets.token_hex(32))')
    echo "::stop-commands::$token"
    code=0
    COLUMNS=120 "$BIN/precheck" "$@" 2>&1 | tee "$new/log" || code=${PIPESTATUS[0]}
    echo "::$token::"
}

# Repeats the verdict as an annotation and in the summary, followed by the report $2 if $1 exists.
# The last line of stderr is the verdict; of an error, the last two are message and hint.
tell() {
    local said escaped lines=2
    if [[ -e "$1" ]]; then lines=1; fi
    said=$(tail -n "$lines" "$new/log")
    rm "$new/log"
    if [[ "$code" != 0 ]]; then
        escaped=${said//'%'/'%25'}
        escaped=${escaped//$'\n'/'%0A'}
        echo "::error title=precheck::$escaped"
    fi
    sed 's/^/    /' <<< "$said" >> "$GITHUB_STEP_SUMMARY"
    if [[ -e "$2" ]]; then
        { echo; cat "$2"; } >> "$GITHUB_STEP_SUMMARY"
    fi
}
