{{/* Labels that select pods: never change them, a Deployment's selector is immutable. */}}
{{- define "holdfast.selector" -}}
app.kubernetes.io/name: holdfast-driver
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "holdfast.labels" -}}
{{ include "holdfast.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: holdfast
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{/* What every unprivileged container is held to. */}}
{{- define "holdfast.unprivileged" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: { drop: [ALL] }
{{- end }}

{{/* Both roles answer /healthz on the same port. The limit of a liveness failure is a minute: a stopped process is
     an injected fault here, and must outlive the operation that it holds. */}}
{{- define "holdfast.probes" -}}
ports:
  - { name: healthz, containerPort: {{ .Values.healthPort }}, protocol: TCP }
startupProbe:
  httpGet: { path: /healthz, port: healthz }
  periodSeconds: 1
  timeoutSeconds: 3
  failureThreshold: 60
livenessProbe:
  httpGet: { path: /healthz, port: healthz }
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
{{- end }}

{{/* Flags that all sidecars share. */}}
{{- define "holdfast.sidecarArgs" -}}
- --v={{ .Values.sidecars.verbosity }}
- --csi-address=/csi/csi.sock
- --leader-election
- --leader-election-namespace={{ .Release.Namespace }}
{{- if eq .Values.timers "fast" }}
- --leader-election-lease-duration=6s
- --leader-election-renew-deadline=4s
- --leader-election-retry-period=1s
- --retry-interval-start=100ms
- --retry-interval-max=2s
- --kube-api-qps=100
- --kube-api-burst=200
{{- end }}
{{- end }}

{{/* One sidecar container: dict "root" $ "name" "csi-x" "sidecar" .Values.sidecars.x "args" (list ...) */}}
{{- define "holdfast.sidecar" -}}
- name: {{ .name }}
  image: {{ .sidecar.image }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  args:
    {{- include "holdfast.sidecarArgs" .root | nindent 4 }}
    {{- range concat .args (.sidecar.extraArgs | default list) }}
    - {{ . | quote }}
    {{- end }}
  securityContext:
    {{- include "holdfast.unprivileged" .root | nindent 4 }}
  {{- with .root.Values.sidecars.resources }}
  resources: {{- toYaml . | nindent 4 }}
  {{- end }}
  volumeMounts:
    - { name: socket, mountPath: /csi }
{{- end }}
