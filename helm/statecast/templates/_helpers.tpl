{{- define "statecast.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* 50 characters, so that there is room for what is put behind it. */}}
{{- define "statecast.fullname" -}}
{{- $name := include "statecast.name" . }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "statecast.instance" -}}
app.kubernetes.io/name: {{ include "statecast.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* What the Deployment selects: never to be changed. */}}
{{- define "statecast.selector" -}}
{{ include "statecast.instance" . }}
app.kubernetes.io/component: relay
{{- end }}

{{- define "statecast.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "statecast.instance" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "statecast.image" -}}
{{- if .Values.image.digest }}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest }}
{{- else }}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) }}
{{- end }}
{{- end }}

{{- define "statecast.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "statecast.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{/* The tls section of one server. Takes the name of the server and its values. */}}
{{- define "statecast.tls" -}}
{{- $dir := printf "/run/secrets/statecast/%s" .server }}
{{- $tls := dict "mode" .tls.mode }}
{{- if or .tls.ca.secret .tls.ca.configMap }}
{{- $_ := set $tls "ca_file" (printf "%s-ca.crt" $dir) }}
{{- end }}
{{- if .tls.client.secret }}
{{- $_ := set $tls "cert_file" (printf "%s-client.crt" $dir) }}
{{- $_ := set $tls "key_file" (printf "%s-client.key" $dir) }}
{{- end }}
{{- toYaml $tls }}
{{- end }}

{{/* The configuration file: what the values say, and where the secrets are. */}}
{{- define "statecast.config" -}}
{{- $dir := "/run/secrets/statecast" }}
{{- $config := deepCopy .Values.config }}
{{- $postgres := dict "url_file" (printf "%s/postgres-url" $dir) }}
{{- $_ := set $postgres "tls" (include "statecast.tls" (dict "server" "postgres" "tls" .Values.postgres.tls) | fromYaml) }}
{{- $_ := set $config "postgres" $postgres }}
{{- $rabbitmq := default dict $config.rabbitmq }}
{{- $_ := set $rabbitmq "urls_file" (printf "%s/rabbitmq-urls" $dir) }}
{{- if .Values.rabbitmq.managementUrl.secret }}
{{- $_ := set $rabbitmq "management_url_file" (printf "%s/rabbitmq-management-url" $dir) }}
{{- end }}
{{- $_ := set $rabbitmq "tls" (include "statecast.tls" (dict "server" "rabbitmq" "tls" .Values.rabbitmq.tls) | fromYaml) }}
{{- $_ := set $config "rabbitmq" $rabbitmq }}
{{- toYaml $config }}
{{- end }}

{{/* One file of a projected volume. */}}
{{- define "statecast.projection" -}}
- {{ .kind }}:
    name: {{ .name }}
    items:
      {{- range $key, $path := .items }}
      - key: {{ $key | quote }}
        path: {{ $path }}
      {{- end }}
{{- end }}

{{- define "statecast.tlsProjections" -}}
{{- $ca := dict .tls.ca.key (printf "%s-ca.crt" .server) }}
{{- if .tls.ca.secret }}
{{ include "statecast.projection" (dict "kind" "secret" "name" .tls.ca.secret "items" $ca) }}
{{- else if .tls.ca.configMap }}
{{ include "statecast.projection" (dict "kind" "configMap" "name" .tls.ca.configMap "items" $ca) }}
{{- end }}
{{- with .tls.client }}
{{- if .secret }}
{{ include "statecast.projection" (dict "kind" "secret" "name" .secret "items" (dict .certKey (printf "%s-client.crt" $.server) .keyKey (printf "%s-client.key" $.server))) }}
{{- end }}
{{- end }}
{{- end }}

{{/* Sources of the volume that holds all secrets. Takes the root, the Secret with the URL of PostgreSQL, and whether it relays. */}}
{{- define "statecast.secrets" -}}
{{- $values := .root.Values }}
{{- include "statecast.projection" (dict "kind" "secret" "name" .url.secret "items" (dict .url.key "postgres-url")) }}
{{ include "statecast.projection" (dict "kind" "secret" "name" $values.rabbitmq.urls.secret "items" (dict $values.rabbitmq.urls.key "rabbitmq-urls")) }}
{{- with $values.rabbitmq.managementUrl }}
{{- if .secret }}
{{ include "statecast.projection" (dict "kind" "secret" "name" .secret "items" (dict .key "rabbitmq-management-url")) }}
{{- end }}
{{- end }}
{{- with $values.console }}
{{- if and $.relay .enabled }}
{{ include "statecast.projection" (dict "kind" "secret" "name" .token.secret "items" (dict .token.key "console-token")) }}
{{- end }}
{{- end }}
{{- include "statecast.tlsProjections" (dict "server" "postgres" "tls" $values.postgres.tls) }}
{{- include "statecast.tlsProjections" (dict "server" "rabbitmq" "tls" $values.rabbitmq.tls) }}
{{- end }}

{{/* What the pods of relay and Jobs have in common. Takes the root, the ConfigMap's name, the Secret with the URL of PostgreSQL, and whether it relays. */}}
{{- define "statecast.volumes" -}}
- name: config
  configMap:
    name: {{ .config }}
- name: secrets
  projected:
    # Readable for the group that fsGroup sets.
    defaultMode: 0440
    sources:
      {{- include "statecast.secrets" . | nindent 6 }}
{{- with .root.Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Takes the root, and whether it relays: only then there are probes, metrics and a console. */}}
{{- define "statecast.container" -}}
{{- $relay := .relay }}
{{- with .root -}}
image: {{ include "statecast.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  {{- toYaml .Values.securityContext | nindent 2 }}
env:
  - name: STATECAST_CONFIG
    value: /etc/statecast/statecast.yaml
  # A variable, since the image sets it by one, and variables win.
  - name: STATECAST_HTTP__LISTEN
    value: {{ printf "%s:%d" .Values.http.address (int .Values.http.port) | quote }}
  {{- if and $relay .Values.console.enabled }}
  - name: STATECAST_CONSOLE__LISTEN
    value: {{ printf "%s:%d" .Values.http.address (int .Values.console.port) | quote }}
  - name: STATECAST_CONSOLE__TOKEN_FILE
    value: /run/secrets/statecast/console-token
  - name: STATECAST_CONSOLE__SHOW_PAYLOAD
    value: {{ .Values.console.showPayload | quote }}
  {{- else if $relay }}
  # By default it answers on loopback, where every container of the pod and every port-forward reads without a token.
  - name: STATECAST_CONSOLE__LISTEN
    value: "off"
  {{- end }}
  {{- with .Values.extraEnv }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
volumeMounts:
  - name: config
    mountPath: /etc/statecast
    readOnly: true
  - name: secrets
    mountPath: /run/secrets/statecast
    readOnly: true
  {{- with .Values.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
{{- end }}

{{/* The pod of a Job. Takes the root, the component's name, the ConfigMap's name, the Secret with the URL of PostgreSQL, and args. */}}
{{- define "statecast.jobPod" -}}
{{- $job := . }}
{{- with .root -}}
metadata:
  labels:
    {{- include "statecast.labels" . | nindent 4 }}
    app.kubernetes.io/component: {{ $job.component }}
    {{- with .Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with .Values.install.podAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  {{- /* The release's own account does not exist before the first installation. */}}
  {{- if and (not .Values.serviceAccount.create) .Values.serviceAccount.name }}
  serviceAccountName: {{ .Values.serviceAccount.name }}
  {{- end }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  restartPolicy: Never
  {{- with .Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with .Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  securityContext:
    {{- toYaml .Values.podSecurityContext | nindent 4 }}
  containers:
    - name: {{ $job.component }}
      {{- include "statecast.container" (dict "root" . "relay" false) | nindent 6 }}
      args:
        {{- toYaml $job.args | nindent 8 }}
      resources:
        {{- toYaml .Values.resources | nindent 8 }}
  volumes:
    {{- include "statecast.volumes" (dict "root" . "config" $job.config "url" $job.url "relay" false) | nindent 4 }}
  {{- with .Values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}
{{- end }}

{{/* What a schema cannot see: values that do not go together. */}}
{{- define "statecast.together" -}}
{{- $grace := "20s" }}
{{- with .Values.config.shutdown }}
{{- $grace = default "20s" .grace }}
{{- end }}
{{- $units := dict "us" 0.000001 "ms" 0.001 "s" 1.0 "m" 60.0 "h" 3600.0 "d" 86400.0 "" 1.0 }}
{{- $grace_s := mulf (regexFind "^[0-9]+" $grace | float64) (get $units (regexFind "[a-z]*$" $grace)) }}
{{- if le (float64 .Values.terminationGracePeriodSeconds) $grace_s }}
{{- fail (printf "terminationGracePeriodSeconds (%d) must be more than config.shutdown.grace (%s): a relay that is killed before its end publishes events again" (int .Values.terminationGracePeriodSeconds) $grace) }}
{{- end }}
{{- if and .Values.console.enabled (eq (int .Values.console.port) (int .Values.http.port)) }}
{{- fail (printf "console.port and http.port are both %d: give one of them another" (int .Values.http.port)) }}
{{- end }}
{{- end }}
