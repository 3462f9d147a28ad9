variable "name" {
  description = "Name of namespace and workgroup"
  type        = string
}

variable "vpc_id" {
  description = "The VPC"
  type        = string
}

variable "subnet_ids" {
  description = "Private subnets in three zones"
  type        = list(string)
}

variable "client_security_group_id" {
  description = "Security group of what may connect"
  type        = string
}

variable "lake_arn" {
  description = "Bucket that COPY reads from"
  type        = string
}

variable "base_rpu" {
  description = "Capacity of a query, in Redshift processing units"
  type        = number
}

variable "max_rpu" {
  description = "Most that it may grow to"
  type        = number
}

variable "rpu_hours_a_month" {
  description = "Use beyond it is logged, and seen by the budget's alarm"
  type        = number
}

variable "kms_key_arn" {
  description = "Key for data at rest"
  type        = string
}
