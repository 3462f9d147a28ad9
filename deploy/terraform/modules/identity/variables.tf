variable "name" {
  description = "Prefix of every name"
  type        = string
}

variable "cluster_name" {
  description = "The EKS cluster"
  type        = string
}

variable "namespace" {
  description = "Namespace of the stages"
  type        = string
  default     = "pipeline"
}

variable "group_prefix" {
  description = "PIPELINE_KAFKA__GROUP_PREFIX"
  type        = string
  default     = "pipeline"
}

variable "kafka_cluster_arn" {
  description = "The MSK cluster"
  type        = string
}

variable "lake_arn" {
  description = "The lake's bucket"
  type        = string
}

variable "workgroup_arn" {
  description = "The Redshift workgroup"
  type        = string
}

variable "kms_key_arn" {
  description = "Key of the lake"
  type        = string
}
