#!/usr/bin/env bash
# Makes ../../spring.ndjson with Spring Security. It needs a JDK and Maven.
set -euo pipefail
cd "$(dirname "$0")"
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
mvn -q -B dependency:copy-dependencies -DoutputDirectory="$build/lib"
javac -cp "$build/lib/*" -d "$build" src/main/java/Make.java
java -cp "$build:$build/lib/*" Make > ../../spring.ndjson
