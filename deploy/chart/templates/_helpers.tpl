{{- /* The agents know the controller by its identity, and that has the namespace in it. */ -}}
{{- define "conduit.namespace" -}}
{{- if ne .Release.Namespace "conduit" }}{{ fail (printf "the namespace is %q; Conduit is installed in the namespace conduit" .Release.Namespace) }}{{ end -}}
conduit
{{- end -}}

{{- /* The labels by which pods are found: they never change. Takes the component. */ -}}
{{- define "conduit.selector" -}}
app.kubernetes.io/name: conduit
app.kubernetes.io/component: {{ . }}
{{- end -}}

{{- /* The labels of every object. Takes a list: the root, the component. */ -}}
{{- define "conduit.labels" -}}
{{- $root := index . 0 -}}
{{ include "conduit.selector" (index . 1) }}
conduit.io/installation: conduit
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/part-of: conduit
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* Takes a list: the root, the image's name. */ -}}
{{- define "conduit.image" -}}
{{- $root := index . 0 -}}
image: "{{ $root.Values.image.registry }}/{{ index . 1 }}:{{ $root.Values.image.tag | default $root.Chart.AppVersion }}"
imagePullPolicy: {{ $root.Values.image.pullPolicy }}
{{- end -}}

{{- define "conduit.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
- name: {{ . }}
{{- end }}
{{- end }}
{{- end -}}
