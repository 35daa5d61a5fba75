{{- /* A release may have dots in its name and begin with a digit. A Service may not. */ -}}
{{- define "authctl.fullname" -}}
{{- $name := .Release.Name | replace "." "-" -}}
{{- if regexMatch "^[0-9]" $name -}}
{{- $name = printf "authctl-%s" $name -}}
{{- else if not (contains "authctl" $name) -}}
{{- $name = printf "%s-authctl" $name -}}
{{- end -}}
{{- $name | trunc 50 | trimAll "-" -}}
{{- end -}}

{{- /* Labels that select the pods of a component. Call with (list $ "serve"). */ -}}
{{- define "authctl.selector" -}}
app.kubernetes.io/name: authctl
app.kubernetes.io/instance: {{ (index . 0).Release.Name | quote }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- define "authctl.labels" -}}
{{ include "authctl.selector" . }}
app.kubernetes.io/version: {{ (index . 0).Chart.AppVersion | replace "+" "_" | trunc 63 | quote }}
app.kubernetes.io/managed-by: {{ (index . 0).Release.Service }}
helm.sh/chart: {{ printf "%s-%s" (index . 0).Chart.Name (index . 0).Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end -}}

{{- /* Annotations of pods. By ours the cluster autoscaler may remove a node whose pods have an emptyDir. */ -}}
{{- define "authctl.annotations" -}}
{{- $ours := dict "cluster-autoscaler.kubernetes.io/safe-to-evict-local-volumes" "data" -}}
{{- toYaml (merge (index .Values "podAnnotations" | default dict | deepCopy) $ours) -}}
{{- end -}}

{{- define "authctl.image" -}}
{{- $image := .Values.image -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ $image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- /* The settings of a component, as YAML: those of all, its own, and what the chart decides. */ -}}
{{- define "authctl.settings" -}}
{{- $root := index . 0 -}}{{- $component := index . 1 -}}
{{- $ours := dict "app" (dict "data_dir" "/data" "operator_addr" (include "authctl.operator" $root)) -}}
{{- if eq $component "serve" -}}
{{- $_ := set $ours "outbox" (dict "relay" (ternary "off" "inline" $root.Values.relay.enabled)) -}}
{{- end -}}
{{- $own := (index $root.Values $component).settings -}}
{{- $all := mergeOverwrite (deepCopy $root.Values.settings) (deepCopy $own) $ours -}}
{{- /* What a component does not use is not asked of it: some settings want a secret or a file. */ -}}
{{- if ne $component "serve" -}}
{{- $all = omit $all "redis" "cache" -}}
{{- $_ := set $all "app" (omit $all.app "tls") -}}
{{- end -}}
{{- if or (eq $component "migrate") (and (eq $component "serve") $root.Values.relay.enabled) -}}
{{- $all = omit $all "kafka" -}}
{{- end -}}
{{- toYaml $all -}}
{{- end -}}

{{- define "authctl.operator" -}}
{{ ternary "" "127.0.0.1" .Values.operator.exposed }}:{{ .Values.operator.port }}
{{- end -}}

{{- /* One setting of a component, or its default. Call with (list $ "serve" "app.port" "8080"). */ -}}
{{- define "authctl.setting" -}}
{{- $value := include "authctl.settings" (list (index . 0) (index . 1)) | fromYaml -}}
{{- range splitList "." (index . 2) -}}
{{- $value = kindIs "map" $value | ternary (get (kindIs "map" $value | ternary $value dict) .) "" -}}
{{- end -}}
{{- $text := include "authctl.text" $value -}}
{{- $text | default (index . 3) -}}
{{- end -}}

{{- /* A value as authctl reads it from the environment. */ -}}
{{- define "authctl.text" -}}
{{- if kindIs "slice" . -}}{{ join "," . }}
{{- else if kindIs "float64" . -}}{{ int64 . }}
{{- else if not (kindIs "invalid" .) -}}{{ toString . }}
{{- end -}}
{{- end -}}

{{- /* Nested settings as environment variables. Call with (dict "settings" … "prefix" ""). Kubernetes replaces
$(NAME) and makes $$ one $ again. */ -}}
{{- define "authctl.environment" -}}
{{- $prefix := .prefix -}}
{{- range $name, $value := .settings }}
{{- $path := printf "%s%s" $prefix $name }}
{{- if kindIs "map" $value }}
{{- include "authctl.environment" (dict "settings" $value "prefix" (printf "%s_" $path)) }}
{{- else if not (kindIs "invalid" $value) }}
- name: {{ upper $path }}
  value: {{ include "authctl.text" $value | replace "$" "$$" | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{- /* Seconds of a duration such as 1m30s, rounded up. */ -}}
{{- define "authctl.seconds" -}}
{{- $sum := 0.0 -}}
{{- range regexFindAll "[0-9.]+[a-zµ]+" . -1 -}}
{{- $unit := regexFind "[a-zµ]+" . -}}
{{- $size := get (dict "h" 3600.0 "m" 60.0 "s" 1.0 "ms" 0.001 "us" 0.000001 "µs" 0.000001 "ns" 0.000000001) $unit -}}
{{- $sum = addf $sum (mulf (regexFind "[0-9.]+" . | float64) $size) -}}
{{- end -}}
{{- ceil $sum | int -}}
{{- end -}}

{{- /* The time that a serve needs to stop, and some more. One that relays waits for the answers of webhooks
and of the mail server after that, as a relay does. */ -}}
{{- define "authctl.grace" -}}
{{- $drain := include "authctl.setting" (list . "serve" "app.drain_delay" "0s") | include "authctl.seconds" | int -}}
{{- $shutdown := include "authctl.setting" (list . "serve" "app.shutdown_timeout" "15s") | include "authctl.seconds" | int -}}
{{- add $drain $shutdown (ternary 10 150 .Values.relay.enabled) -}}
{{- end -}}

{{- /* What cannot work is refused before anything is installed. */ -}}
{{- define "authctl.check" -}}
{{- range $component := list "serve" "relay" "migrate" -}}
{{- $values := index $.Values $component -}}
{{- if or (eq $component "serve") $values.enabled -}}
{{- if and (not (hasKey $values.secrets "database.url")) (not (include "authctl.setting" (list $ $component "db.postgres.host" ""))) -}}
{{- fail (printf "%s has no database: set settings.db.postgres.host, or %s.secrets with database.url; SQLite is for one machine" $component $component) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if not (hasKey .Values.serve.secrets "auth.token.secret") -}}
{{- fail "serve has no signing secret: name the Secret and the key that hold auth.token.secret in serve.secrets" -}}
{{- end -}}
{{- if not (include "authctl.setting" (list . "serve" "auth.token.issuer" "")) -}}
{{- fail "set settings.auth.token.issuer, the URL by which clients know this service, such as https://auth.example.com" -}}
{{- end -}}
{{- $request := include "authctl.setting" (list . "serve" "app.http.request_timeout" "15s") -}}
{{- $shutdown := include "authctl.setting" (list . "serve" "app.shutdown_timeout" "15s") -}}
{{- if lt (include "authctl.seconds" $shutdown | int) (include "authctl.seconds" $request | int) -}}
{{- fail (printf "app.shutdown_timeout (%s) is below app.http.request_timeout (%s): every update would cut off requests" $shutdown $request) -}}
{{- end -}}
{{- if not (include "authctl.setting" (list . "relay" "kafka.brokers" "")) -}}
{{- if not .Values.relay.enabled -}}
{{- fail "without Kafka events go to a file, which would be lost with its pod: set settings.kafka.brokers, or relay.enabled with relay.existingClaim" -}}
{{- else if not .Values.relay.existingClaim -}}
{{- fail "without Kafka events go to a file, which would be lost with its pod: set settings.kafka.brokers, or relay.existingClaim" -}}
{{- end -}}
{{- end -}}
{{- if and .Values.relay.enabled .Values.relay.existingClaim (ne (int .Values.relay.replicas) 1) -}}
{{- fail "relay.existingClaim is for the events of one relay without Kafka: set relay.replicas to 1, or leave the claim out" -}}
{{- end -}}
{{- range compact (splitList "," (include "authctl.setting" (list . "relay" "kafka.brokers" ""))) -}}
{{- if not (regexMatch ":[0-9]+$" .) -}}
{{- fail (printf "kafka.brokers has %s without a port: write host:port, such as %s:9093" . .) -}}
{{- end -}}
{{- end -}}
{{- $port := include "authctl.setting" (list . "serve" "app.port" "8080") -}}
{{- if eq (int $port) 0 -}}
{{- fail "app.port is 0, any free port, where no Service could find it: choose a port" -}}
{{- end -}}
{{- if eq (int $port) (int .Values.operator.port) -}}
{{- fail (printf "app.port and operator.port are both %s: choose another one for operator.port" $port) -}}
{{- end -}}
{{- with .Values.serve.service -}}
{{- if and .externalTrafficPolicy (eq .type "ClusterIP") -}}
{{- fail "serve.service.externalTrafficPolicy is for the types NodePort and LoadBalancer: leave it out" -}}
{{- end -}}
{{- end -}}
{{- with .Values.serve.autoscaling -}}
{{- if and .enabled (gt (int .minReplicas) (int .maxReplicas)) -}}
{{- fail "serve.autoscaling.minReplicas is above maxReplicas, which a cluster refuses: raise maxReplicas" -}}
{{- end -}}
{{- end -}}
{{- range $label := list "app.kubernetes.io/name" "app.kubernetes.io/instance" "app.kubernetes.io/component" "app.kubernetes.io/version" "app.kubernetes.io/managed-by" "helm.sh/chart" "authctl/operator" -}}
{{- if hasKey (index $.Values "podLabels" | default dict) $label -}}
{{- fail (printf "podLabels has %s, which the chart sets itself, and by which Services find their pods: leave it out" $label) -}}
{{- end -}}
{{- end -}}
{{- if and (not .Values.operator.exposed) .Values.operator.serviceMonitor -}}
{{- fail "operator.serviceMonitor needs operator.exposed: Prometheus could not reach the listener" -}}
{{- end -}}
{{- if and (not .Values.operator.exposed) .Values.operator.prometheusRule -}}
{{- fail "operator.prometheusRule needs operator.exposed: without metrics AuthctlOutboxNoRelay always fires" -}}
{{- end -}}
{{- end -}}

{{- /* The secret settings of a component, as YAML. Relays send webhooks and mails: the secrets of webhooks
       and the codes in mails are sealed under the signing secret of serve. */ -}}
{{- define "authctl.secrets" -}}
{{- $root := index . 0 -}}{{- $component := index . 1 -}}
{{- $secrets := deepCopy (index $root.Values $component).secrets -}}
{{- if eq $component "relay" -}}
{{- $secrets = merge $secrets (pick $root.Values.serve.secrets "auth.token.secret" "auth.token.previous_secrets") -}}
{{- end -}}
{{- toYaml $secrets -}}
{{- end -}}

{{- /* What the containers of a component share. */ -}}
{{- define "authctl.container" -}}
{{- $root := index . 0 -}}{{- $component := index . 1 -}}
{{- $values := index $root.Values $component -}}
{{- $secrets := include "authctl.secrets" . | fromYaml -}}
image: {{ include "authctl.image" $root | quote }}
imagePullPolicy: {{ $root.Values.image.pullPolicy }}
env:
  {{- include "authctl.environment" (dict "settings" (include "authctl.settings" . | fromYaml) "prefix" "") | nindent 2 }}
  {{- range $path, $source := $secrets }}
  - name: {{ $path | replace "." "_" | upper }}_FILE
    value: /run/secrets/authctl/{{ $path }}
  {{- end }}
  {{- with $root.Values.env }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
resources:
  {{- toYaml $values.resources | nindent 2 }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
volumeMounts:
  - {name: data, mountPath: /data}
  {{- if $secrets }}
  - {name: secrets, mountPath: /run/secrets/authctl, readOnly: true}
  {{- end }}
  {{- with $root.Values.volumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{- /* What the pods of a component share. */ -}}
{{- define "authctl.pod" -}}
{{- $root := index . 0 -}}{{- $component := index . 1 -}}
{{- $values := index $root.Values $component -}}
automountServiceAccountToken: false
{{- with $root.Values.serviceAccountName }}
serviceAccountName: {{ . | quote }}
{{- end }}
# Variables of other services must not be taken for settings: a service called app sets APP_PORT.
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  {{- with index $root.Values "user" }}
  runAsUser: {{ int64 . }}
  runAsGroup: {{ int64 . }}
  fsGroup: {{ int64 . }}
  {{- end }}
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- with $root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
{{- with $root.Values.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- range $field := list "nodeSelector" "tolerations" }}
{{- with index $root.Values $field }}
{{ $field }}:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
affinity:
  {{- with $root.Values.affinity }}
  {{- toYaml . | nindent 2 }}
  {{- else }}
  # A spread constraint over zones would undo the one over nodes, where nodes have no zone.
  podAntiAffinity:
    preferredDuringSchedulingIgnoredDuringExecution:
      - weight: 100
        podAffinityTerm:
          topologyKey: topology.kubernetes.io/zone
          labelSelector:
            matchLabels:
              {{- include "authctl.selector" . | nindent 14 }}
  {{- end }}
{{- if ne $component "migrate" }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "authctl.selector" . | nindent 8 }}
{{- end }}
volumes:
  {{- if and (eq $component "relay") $values.existingClaim }}
  - name: data
    persistentVolumeClaim: {claimName: {{ $values.existingClaim | quote }}}
  {{- else }}
  - name: data
    emptyDir: {}
  {{- end }}
  {{- with include "authctl.secrets" . | fromYaml }}
  - name: secrets
    projected:
      # Without a group of the pod's own they would be those of root.
      defaultMode: {{ if index $root.Values "user" }}0440{{ else }}0444{{ end }}
      sources:
        {{- range $path, $source := . }}
        - secret:
            name: {{ $source.name | quote }}
            items: [{key: {{ $source.key | quote }}, path: {{ $path }}}]
        {{- end }}
  {{- end }}
  {{- with $root.Values.volumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{- /* How to ask the operator listener: only the pod itself reaches one that is not exposed. */ -}}
{{- define "authctl.askOperator" -}}
{{- if (index . 0).Values.operator.exposed -}}
httpGet: {port: operator, path: {{ index . 1 }}}
{{- else -}}
exec: {command: [/usr/local/bin/authctl, health]}
{{- end -}}
{{- end -}}
