variable "name" {
  description = "Name of the cluster, and prefix of every name"
  type        = string
}

variable "kubernetes_version" {
  description = "Version of Kubernetes"
  type        = string
  default     = "1.34"
}

variable "subnet_ids" {
  description = "Private subnets"
  type        = list(string)
}

variable "api_cidrs" {
  description = "From where the API may be reached over the internet; empty: from nowhere"
  type        = list(string)
}

variable "instance_types" {
  description = "Of the nodes"
  type        = list(string)
}

variable "capacity_type" {
  description = "ON_DEMAND, or SPOT: every stage stands being killed"
  type        = string

  validation {
    condition     = contains(["ON_DEMAND", "SPOT"], var.capacity_type)
    error_message = "capacity_type is ON_DEMAND or SPOT."
  }
}

variable "nodes" {
  description = "How many nodes"
  type = object({
    min     = number
    desired = number
    max     = number
  })
}

variable "kms_key_arn" {
  description = "Key for secrets and logs"
  type        = string
}
