variable "name" {
  description = "Prefix of every name, and value of the tag `project`"
  type        = string
}

variable "region" {
  description = "AWS region"
  type        = string
}

variable "cidr" {
  description = "Addresses of the VPC, a /16"
  type        = string
}

variable "bucket" {
  description = "Name of the lake's bucket"
  type        = string
}

variable "api_cidrs" {
  description = "From where the cluster's API may be reached over the internet"
  type        = list(string)
}

variable "mail_to" {
  description = "Who hears when the bill grows"
  type        = list(string)
}

variable "limit_usd" {
  description = "Budget of a month"
  type        = number
}

variable "nat_per_zone" {
  description = "Whether each zone has a NAT gateway of its own"
  type        = bool
}

variable "broker" {
  description = "Size of a broker"
  type = object({
    instance_type = string
    volume_gib    = number
  })
}

variable "nodes" {
  description = "How many nodes"
  type = object({
    min     = number
    desired = number
    max     = number
  })
}

variable "node_types" {
  description = "Instance types of the nodes"
  type        = list(string)
}

variable "capacity_type" {
  description = "ON_DEMAND or SPOT"
  type        = string
}

variable "warehouse" {
  description = "Capacity of Redshift Serverless, and its use in a month"
  type = object({
    base_rpu          = number
    max_rpu           = number
    rpu_hours_a_month = number
  })
}
